"""``study train --plan``: what a sweep would take. Trains nothing.

``--plan`` alone plans for this machine: it reads the data and measures the speed of products.
``--plan=8xh100`` prices the sweep for devices that need not be here (:mod:`study.sweeps.estimate`).
"""

from collections.abc import Iterator, Sequence
from datetime import timedelta

import psutil
from rich.console import Console
from rich.table import Table

from study.sweeps.cells import Cell, data_name
from study.sweeps.estimate import (
    ACHIEVED_SHARE,
    CellPrice,
    Fleet,
    cell_price,
    disk_price,
    fleet,
    fold_bytes,
    makespan,
)
from study.sweeps.launch import announce
from study.sweeps.packs import PreparedPack, prepare
from study.sweeps.progress import count_noun
from study.training.devices import matmul_rate
from study.vocabulary.sources import MATMUL_SHARE

WIDTH = 120


def show_plan(
    cells: Sequence[Cell], packs: Sequence[Sequence[Cell]], devices: str | None = None
) -> None:
    """Print what the packs will take on stdout: cells, FLOPs, memory, time and bytes on disk.

    ``devices``: those to price the sweep for, such as ``8xh100``; None: this machine's.
    """
    named = fleet(devices) if devices else None
    announce(cells, packs)
    todo = [cell for pack in packs for cell in pack]
    if named:
        print("\n".join([render_price(todo, named), *disk_lines(todo)]))
        return
    prepared = [prepare(pack) for pack in packs]
    print("\n".join([render_plan(prepared), *data_lines(prepared), *disk_lines(todo)]))


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
    rate = matmul_rate(packs[0].device) / 1e9 if packs else 0.0
    lines = _printed(table)
    lines += [f"all packs: about {_duration(total)} at half of the measured {rate:.0f} GFLOP/s"]
    lines += [_process_memory(packs)] if packs and packs[0].device.type == "cpu" else []
    return "\n".join(lines)


def _process_memory(packs: Sequence[PreparedPack]) -> str:
    """What the largest process holds, in one line: this process has all but the base and a cell."""
    here = psutil.Process().memory_info().rss
    needs = [prepared.estimate for pack in packs for prepared in pack.cells]
    most = max(needs, key=lambda need: fold_bytes([need]))
    total = here + fold_bytes([most])
    cell = fold_bytes([most]) - most.base_bytes
    return (
        f"memory of a process: about {total / 2**30:.1f} GB, of which {here / 2**30:.1f} GB are "
        f"the program, the tokenizer and the data, {most.base_bytes / 2**30:.1f} GB the base and "
        f"{cell / 2**30:.1f} GB the largest cell with its logits"
    )


def render_price(cells: Sequence[Cell], devices: Fleet) -> str:
    """A table with a line for each rank, and the hours of all cells on ``devices``."""
    columns = ("rank", "cells", "PFLOP a cell", "GPU hours a cell", "base GB", "adapter GB")
    table = Table(*columns, "activations GB", "devices a cell", "GB a device", box=None)
    priced = [cell_price(cell, devices) for cell in cells]
    for rank in sorted({price.cell.config.adapter.rank for price in priced}):
        own = [price for price in priced if price.cell.config.adapter.rank == rank]
        most = max(own, key=lambda price: fold_bytes([price.need]))
        need = most.need
        table.add_row(
            f"{rank:g}",
            str(len(own)),
            f"{max(price.need.flops for price in own) / 1e15:.3g}",
            f"{max(_gpu_hours(price) for price in own):.2f}",
            f"{need.base_bytes / 2**30:.1f}",
            f"{(need.own_bytes - need.activation_bytes) / 2**30:.1f}",
            f"{need.activation_bytes / 2**30:.1f}",
            str(most.devices or "too large"),
            f"{fold_bytes([most.part]) / 2**30:.1f}",
        )
    return "\n".join([*_printed(table), *_hours(priced, devices)])


def _gpu_hours(price: CellPrice) -> float:
    return price.seconds * (price.devices or 1) / 3600


def _hours(priced: Sequence[CellPrice], devices: Fleet) -> Iterator[str]:
    alone = [price for price in priced if price.devices == 1]
    hours = sum(price.seconds for price in alone) / 3600
    busy = makespan([(1, price.seconds) for price in alone], devices.count)
    yield (
        f"{count_noun(len(alone), 'cell')}, one on a device: {hours:.1f} GPU hours; on "
        f"{devices.count} {devices.name} about {_duration(busy)}, the longest first"
    )
    if large := [price for price in priced if price.devices != 1]:
        fit = [(n, p) for p in priced if (n := p.devices) and n <= devices.count]
        hours = sum(_gpu_hours(price) for _, price in fit)
        busy = makespan([(n, price.seconds) for n, price in fit], devices.count)
        yield (
            f"{count_noun(len(large), 'cell')} too large for one {devices.name}. With "
            "train.shard=true, over as many devices as each cell needs, "
            f"{len(fit)} of {count_noun(len(priced), 'cell')} fit: {hours:.1f} GPU hours and about "
            f"{_duration(busy)}"
        )
        if not all(price.cell.config.train.checkpointing for price in large):
            yield "train.checkpointing=true keeps fewer activations, and computes each block again"
    row, step = devices.row, ACHIEVED_SHARE
    yield (
        f"assumed: {row.label} with {row.gib:g} GiB; {MATMUL_SHARE:.0%} of the data sheet's peak "
        f"({row.bf16:g} TFLOP/s in bf16, {row.float32:g} in float32) in large products, and "
        f"{step:.0%} of that in a step; every sequence is full; loading is not counted"
    )


def disk_lines(cells: Sequence[Cell]) -> Iterator[str]:
    """What the cells write to disk, in one line."""
    price = disk_price(cells)
    if not cells:
        return
    yield (
        f"on disk: about {_size(price.tables)} of tables and records, {_size(price.adapters)} of "
        f"adapters, and up to {_size(price.checkpoints)} of checkpoints for each cell in training"
    )


def _size(nbytes: float) -> str:
    """``1.5 GB``: in powers of 1000, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"


def _printed(table: Table) -> list[str]:
    console = Console(width=WIDTH)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
