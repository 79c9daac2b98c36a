"""``study train --plan``: the cost of a sweep. Trains nothing.

``--plan`` alone plans for this machine: it reads the data and measures the speed of products.
``--plan=8xh100`` estimates the cost on devices that you need not have. It assumes full sequences in
which every token is a target, an upper bound for shorter rows.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

from rich.table import Table

from study.errors import StudyError, count_noun, short, unknown
from study.sweeps.cells import Cell, data_name
from study.sweeps.estimate import (
    ACHIEVED_SHARE,
    LAUNCH,
    MEMORY_SHARE,
    Estimate,
    fold_bytes,
    full_estimate,
    memory_budget,
)
from study.sweeps.launch import announce
from study.sweeps.packs import Pack, folds, prepare
from study.sweeps.progress import table_lines
from study.training.devices import matmul_rate
from study.vocabulary.sources import DEVICES, MATMUL_SHARE

GB = 2**30


def show_plan(cells: Sequence[Cell], packs: Sequence[Sequence[Cell]], devices: str = "") -> None:
    """Print the cost of the cells to train: FLOPs, folds, memory and time.

    ``devices``: the devices to plan for, such as ``8xh100``; empty: this machine.
    """
    count, name = fleet(devices) if devices else (1, "")
    announce(cells, packs)
    todo = [cell for pack in packs for cell in pack]
    if not todo:
        return
    if name:
        row = DEVICES[name]
        memory = MEMORY_SHARE["cuda"] * row.gib * GB
        rates = {p: MATMUL_SHARE * 1e12 * getattr(row, p) for p in ("bf16", "float32")}
        needs = [(cell, full_estimate(cell.config, cell.card)) for cell in todo]
        notes = [
            f"assumed: {row.label} with {row.gib:g} GiB; {MATMUL_SHARE:.0%} of the data sheet's "
            f"peak ({row.bf16:g} TFLOP/s in bf16, {row.float32:g} in float32) in large products, "
            f"and {ACHIEVED_SHARE:.0%} of that in a step, or {LAUNCH * 1e6:.0f} us an operation; "
            "every sequence is full; loading is not counted"
        ]
    else:
        prepared = [prepare(pack) for pack in packs]
        device, name = prepared[0].device, prepared[0].device.type
        memory = memory_budget(todo[0].config, device)
        rates = {p: matmul_rate(device, p) for p in sorted({c.config.precision for c in todo})}
        speeds = (f"{rate / 1e9:.0f} GFLOP/s in large {p} products" for p, rate in rates.items())
        divided = [fold for pack in prepared for fold in folds(pack)]
        needs = [(x.cell, x.estimate.in_fold(len(fold))) for fold in divided for x in fold]
        most = max(fold_bytes([each.estimate for each in fold]) for fold in divided) / GB
        notes = [
            f"{count_noun(len(divided), 'fold')} of up to {max(map(len, divided))} cells in a "
            f"forward pass, which takes up to {most:.3g} GB",
            f"a process may use {memory / GB:.3g} GB; measured: {', '.join(speeds)}; "
            f"{ACHIEVED_SHARE:.0%} of that is taken for a step",
            *dict.fromkeys(line for pack in prepared for line in _data_lines(pack)),
        ]
    print("\n".join([*_price_lines(needs, count, name, memory, rates), *notes]))


def _price_lines(
    needs: Sequence[tuple[Cell, Estimate]],
    count: int,
    name: str,
    memory: float,
    rates: Mapping[str, float],
) -> Iterator[str]:
    """A table with a line for each rank, and the time of all cells on ``count`` devices.

    ``memory``: bytes of one; ``rates``: its FLOP/s in large products, by precision.
    """
    columns = ("rank", "cells", "PFLOP a cell", "base GB", "adapter GB", "activations GB")
    table = Table(*columns, "devices a cell", "GB a device", "time a cell", box=None)
    jobs: list[tuple[int | None, float]] = []
    for rank in sorted({cell.config.adapter.rank for cell, _ in needs}):
        own = []
        for cell, need in needs:
            if cell.config.adapter.rank == rank:
                number = least_devices(need, memory)
                part = need.divided(number or 1)
                own.append((fold_bytes([need]), need, number, part))
                jobs.append((number, part.seconds(rates[cell.config.precision])))
        _, need, number, part = max(own, key=lambda each: each[0])
        sizes = (
            need.base_bytes,
            need.own_bytes - need.activation_bytes,
            need.activation_bytes,
        )
        table.add_row(
            f"{rank:.0f}",
            str(len(own)),
            f"{need.flops / 1e15:.3g}",
            *(f"{size / GB:.3g}" for size in sizes),
            str(number or "too large"),
            f"{fold_bytes([part]) / GB:.3g}",
            _duration(max(seconds for _, seconds in jobs[-len(own) :])),
        )
    yield from table_lines(table)
    fit = [(n, seconds) for n, seconds in jobs if n and n <= count]
    work = sum(n * seconds for n, seconds in fit)
    longest = max((seconds for _, seconds in fit), default=0.0)
    yield (
        f"{len(fit)} of {count_noun(len(jobs), 'cell')} fit: {work / 3600:.3g} device hours; on "
        f"{count} {name} about {_duration(max(work / count, longest))}"
    )
    if large := sum(n != 1 for n, _ in jobs):
        yield (
            f"{count_noun(large, 'cell')} too large for one {name}: train.shard=true divides a "
            "cell over devices; train.checkpointing=true keeps fewer activations, and computes "
            "each block again"
        )


def _data_lines(pack: Pack) -> Iterator[str]:
    """The data of a pack: its rows, those that don't fit, and the steps of its epochs."""
    rows, data, train = pack.corpus.rows, pack.config.data, pack.config.train
    form = f" of data.format={rows['format']}" if rows["format"] else ""
    packed = f", packed into {rows['packed']} rows," if "packed" in rows else ""
    yield (
        f"data {data_name(data)}: {rows['train']} rows{form}{packed} to train on and "
        f"{rows['heldout']} held out; {rows['cut']} are cut to {data.sequence_length} tokens, "
        f"{rows['dropped']} are skipped without target tokens"
    )
    if train.epochs is not None:
        yield (
            f"train.epochs={train.epochs:g}: {train.steps} steps of "
            f"{train.batch_size * train.accumulation} rows; train.steps is ignored"
        )


def fleet(text: str) -> tuple[int, str]:
    """The number and the name of the devices of ``--plan=8xh100`` or ``--plan=h100``."""
    found = re.fullmatch(r"(?:([1-9]\d{0,5})x)?(\w+)", text)
    if found is None:
        raise StudyError(f"--plan={short(text)}: give a number of devices, such as 8xh100")
    if found[2] not in DEVICES:
        raise unknown("device of --plan", found[2], DEVICES)
    return int(found[1] or 1), found[2]


def least_devices(need: Estimate, memory: float) -> int | None:
    """The least power of two of devices with ``memory`` bytes each that hold a cell.

    None if 4096 don't: some of it is whole on every device.
    """
    counts = (2**power for power in range(13))
    return next((n for n in counts if fold_bytes([need.divided(n)]) <= memory), None)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
