"""``study train --plan``: what a sweep would take. Trains nothing."""

from collections.abc import Sequence
from datetime import timedelta

from rich.console import Console
from rich.table import Table

from study.sweeps.cells import Cell
from study.sweeps.estimate import fold_bytes
from study.sweeps.launch import announce
from study.sweeps.prepare import PreparedPack, prepare
from study.training.devices import matmul_rate

WIDTH = 120


def show_plan(cells: Sequence[Cell], packs: Sequence[Sequence[Cell]]) -> None:
    """Print what the packs will take on stdout: cells, FLOPs, memory and time."""
    announce(cells, packs)
    print(render_plan([prepare(pack) for pack in packs]))


def render_plan(packs: Sequence[PreparedPack]) -> str:
    """A table with a line for each pack, and the time of all packs one after the other."""
    columns = ("pack", "cells", "ranks", "PFLOP", "base GB", "largest cell GB", "may use GB")
    table = Table(*columns, "about", box=None)
    total = 0.0
    for number, pack in enumerate(packs, start=1):
        needs = [prepared.estimate for prepared in pack.cells]
        seconds = sum(need.seconds(matmul_rate(pack.device)) for need in needs)
        total += seconds
        ranks = sorted({prepared.cell.config.adapter.rank for prepared in pack.cells})
        table.add_row(
            str(number),
            str(len(needs)),
            ", ".join(f"{rank:g}" for rank in ranks),
            f"{sum(need.flops for need in needs) / 1e15:.3g}",
            f"{needs[0].base_bytes / 2**30:.2f}",
            f"{max(fold_bytes([need]) - need.base_bytes for need in needs) / 2**30:.2f}",
            f"{pack.memory / 2**30:.1f}",
            _duration(seconds),
        )
    console = Console(width=WIDTH)
    with console.capture() as capture:
        console.print(table)
    rate = matmul_rate(packs[0].device) / 1e9 if packs else 0.0
    lines = [line.rstrip() for line in capture.get().splitlines()]
    lines += [f"all packs: about {_duration(total)} at half of the measured {rate:.0f} GFLOP/s"]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
