"""``study train --plan``: what a sweep would take. Trains nothing."""

from collections.abc import Iterator, Sequence
from datetime import timedelta

from rich.console import Console
from rich.table import Table

from study.sweeps.cells import Cell
from study.sweeps.datasets import data_name
from study.sweeps.estimate import fold_bytes
from study.sweeps.launch import announce
from study.sweeps.prepare import PreparedPack, prepare
from study.training.devices import matmul_rate

WIDTH = 120


def show_plan(cells: Sequence[Cell], packs: Sequence[Sequence[Cell]]) -> None:
    """Print what the packs will take on stdout: cells, FLOPs, memory and time."""
    announce(cells, packs)
    prepared = [prepare(pack) for pack in packs]
    print("\n".join([render_plan(prepared), *data_lines(prepared)]))


def data_lines(packs: Sequence[PreparedPack]) -> list[str]:
    """What each pack reads: its rows, those that don't fit, and the steps of its epochs."""
    return list(dict.fromkeys(line for pack in packs for line in _data_lines(pack)))


def _data_lines(pack: PreparedPack) -> Iterator[str]:
    rows, data, train = pack.corpus.rows, pack.config.data, pack.config.train
    form = f" of data.format={rows['format']}" if rows["format"] else ""
    sizes = f"{rows['train']} rows{form} to train on and {rows['heldout']} held out"
    fit = f"{rows['cut']} are cut to {data.sequence_length} tokens"
    yield (
        f"data {data_name(data)}: {sizes}; {fit}, {rows['dropped']} others are dropped, because "
        "they have nothing to learn"
    )
    if train.epochs is not None:
        yield (
            f"train.epochs={train.epochs:g}: {train.steps} steps of "
            f"{train.batch_size * train.accumulation} rows; train.steps is ignored"
        )


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
