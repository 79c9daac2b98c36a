"""``study train --plan``: what a sweep would take. Trains nothing.

``--plan`` alone plans for this machine: it reads the data and measures the speed of products.
``--plan=8xh100`` prices the sweep for devices that need not be here. Then nothing is read and
nothing is measured: every sequence counts as full and every token as a target, so FLOPs and bytes
are upper bounds for shorter rows.
"""

import heapq
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from rich.filesize import decimal
from rich.table import Table

from study.adapters import resolve_targets
from study.config import chosen, probe_steps
from study.errors import StudyError, short, unknown
from study.sweeps.cells import Cell, data_name
from study.sweeps.estimate import (
    ACHIEVED_SHARE,
    FLOAT,
    MEMORY_SHARE,
    Estimate,
    fold_bytes,
    full_estimate,
    memory_budget,
)
from study.sweeps.launch import announce
from study.sweeps.packs import Pack, prepare
from study.sweeps.progress import count_noun, table_lines
from study.training.devices import matmul_rate
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.quantities import BATCHES, SITES
from study.vocabulary.sources import DEVICES, MATMUL_SHARE

CELL_BYTES = 20_000
"""Of a record, a configuration and the headers of tables. Measured: 8 to 35 kB."""
PROBE_BYTES = 18
"""Of a row of probes.parquet, if every site had a row in every layer. Measured: 17 to 30."""
STEP_BYTES = 25
"""Of a row of metrics.parquet."""
CHECKPOINTS = 2
"""A new checkpoint is whole before the earlier one is deleted."""
GB = 2**30


def show_plan(cells: Sequence[Cell], packs: Sequence[Sequence[Cell]], devices: str = "") -> None:
    """Print what the packs will take on stdout: cells, FLOPs, memory, time and bytes on disk.

    ``devices``: those to price the sweep for, such as ``8xh100``; empty: this machine's.
    """
    count, name = fleet(devices) if devices else (0, "")
    announce(cells, packs)
    todo = [cell for pack in packs for cell in pack]
    if name:
        lines = render_price(todo, count, name)
    else:
        prepared = [prepare(pack) for pack in packs]
        read = dict.fromkeys(line for pack in prepared for line in _data_lines(pack))
        lines = [*render_plan(prepared), *read]
    if todo:
        tables, adapters, checkpoints = map(decimal, disk_bytes(todo))
        lines.append(
            f"on disk: about {tables} of tables and records, {adapters} of adapters, and up to "
            f"{checkpoints} of checkpoints for each cell in training"
        )
    print("\n".join(lines))


def _data_lines(pack: Pack) -> Iterator[str]:
    """What a pack reads: its rows, those that don't fit, and the steps of its epochs."""
    rows, data, train = pack.corpus.rows, pack.config.data, pack.config.train
    form = f" of data.format={rows['format']}" if rows["format"] else ""
    yield (
        f"data {data_name(data)}: {rows['train']} rows{form} to train on and {rows['heldout']} "
        f"held out; {rows['cut']} are cut to {data.sequence_length} tokens, {rows['dropped']} "
        "others are dropped, because they have nothing to learn"
    )
    if train.epochs is not None:
        yield (
            f"train.epochs={train.epochs:g}: {train.steps} steps of "
            f"{train.batch_size * train.accumulation} rows; train.steps is ignored"
        )


def render_plan(packs: Sequence[Pack]) -> list[str]:
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
            f"{needs[0].base_bytes / GB:.2f}",
            f"{max(fold_bytes([need]) - need.base_bytes for need in needs) / GB:.2f}",
            f"{memory_budget(pack.config, pack.device) / GB:.1f}",
            _duration(seconds),
        )
    rate = matmul_rate(packs[0].device) / 1e9 if packs else 0.0
    end = f"all packs: about {_duration(total)} at half of the measured {rate:.0f} GFLOP/s"
    return [*table_lines(table), end]


# Devices that need not be here.


def fleet(text: str) -> tuple[int, str]:
    """The number and the name of the devices of ``--plan=8xh100`` or ``--plan=h100``.

    Raises :class:`StudyError` for anything else.
    """
    found = re.fullmatch(r"(?:([1-9]\d{0,5})x)?(\w+)", text)
    if found is None:
        raise StudyError(f"--plan={short(text)}: give a number of devices, such as 8xh100")
    if found[2] not in DEVICES:
        raise unknown("device of --plan", found[2], DEVICES)
    return int(found[1] or 1), found[2]


@dataclass(frozen=True)
class Price:
    """One cell: its estimate, the least number of devices that hold it, and its time on them.

    ``devices``: None if no number of devices holds it. ``part``: the share of each of them, or the
    whole estimate. ``seconds``: on all of them together.
    """

    rank: float
    need: Estimate
    devices: int | None
    part: Estimate
    seconds: float

    @property
    def gpu_hours(self) -> float:
        """The time on all devices, added."""
        return self.seconds * (self.devices or 1) / 3600


def price_of(cell: Cell, device: str) -> Price:
    """The price of a cell on one kind of device. Its speed is assumed, not measured."""
    row, need = DEVICES[device], full_estimate(cell.config, cell.card)
    count = least_devices(need, MEMORY_SHARE["cuda"] * row.gib * GB)
    part = need.divided(count or 1)
    peak = row.bf16 if cell.config.precision == "bf16" else row.float32
    seconds = part.seconds(MATMUL_SHARE * peak * 1e12)
    return Price(cell.config.adapter.rank, need, count, part, seconds)


def least_devices(need: Estimate, memory: float) -> int | None:
    """The least power of two of devices with ``memory`` bytes each that hold a cell.

    None if 4096 don't: some of it is whole on every device.
    """
    counts = (2**power for power in range(13))
    return next((n for n in counts if fold_bytes([need.divided(n)]) <= memory), None)


def render_price(cells: Sequence[Cell], count: int, device: str) -> list[str]:
    """A table with a line for each rank, and the hours of all cells on ``count`` devices."""
    columns = ("rank", "cells", "PFLOP a cell", "GPU hours a cell", "base GB", "adapter GB")
    table = Table(*columns, "activations GB", "devices a cell", "GB a device", box=None)
    prices = [price_of(cell, device) for cell in cells]
    for rank in sorted({price.rank for price in prices}):
        own = [price for price in prices if price.rank == rank]
        most = max(own, key=lambda price: fold_bytes([price.need]))
        need = most.need
        table.add_row(
            f"{rank:g}",
            str(len(own)),
            f"{max(price.need.flops for price in own) / 1e15:.3g}",
            f"{max(price.gpu_hours for price in own):.2f}",
            f"{need.base_bytes / GB:.1f}",
            f"{(need.own_bytes - need.activation_bytes) / GB:.1f}",
            f"{need.activation_bytes / GB:.1f}",
            str(most.devices or "too large"),
            f"{fold_bytes([most.part]) / GB:.1f}",
        )
    row, lines = DEVICES[device], table_lines(table)
    jobs = [(n, price) for price in prices if (n := price.devices) and n <= count]
    busy = makespan([(n, price.seconds) for n, price in jobs], count)
    hours = sum(price.gpu_hours for _, price in jobs)
    lines.append(
        f"{len(jobs)} of {count_noun(len(prices), 'cell')} fit: {hours:.1f} GPU hours; on "
        f"{count} {device} about {_duration(busy)}, the longest first"
    )
    if large := sum(price.devices != 1 for price in prices):
        lines.append(
            f"{count_noun(large, 'cell')} too large for one {device}: train.shard=true divides a "
            "cell over devices; train.checkpointing=true keeps fewer activations, and computes "
            "each block again"
        )
    lines.append(
        f"assumed: {row.label} with {row.gib:g} GiB; {MATMUL_SHARE:.0%} of the data sheet's peak "
        f"({row.bf16:g} TFLOP/s in bf16, {row.float32:g} in float32) in large products, and "
        f"{ACHIEVED_SHARE:.0%} of that in a step; every sequence is full; loading is not counted"
    )
    return lines


def makespan(jobs: Sequence[tuple[int, float]], devices: int) -> float:
    """Seconds until all jobs have ended, if the longest one starts first.

    ``jobs``: pairs of the devices that a job takes, and its seconds on them.
    """
    free = [0.0] * devices
    for wanted, seconds in sorted(jobs, key=lambda job: -job[1]):
        ends = max(heapq.heappop(free) for _ in range(wanted)) + seconds
        for _ in range(wanted):
            heapq.heappush(free, ends)
    return max(free)


def disk_bytes(cells: Sequence[Cell]) -> tuple[int, int, int]:
    """Bytes on disk: of the tables and records of all cells, of the adapters that are kept, and of
    the checkpoints of the largest cell while it trains.
    """
    tables = adapters = largest = 0
    for cell in cells:
        config = cell.config
        layers = 1 + len(resolve_targets(cell.card.targets, config.adapter.targets))
        sites = len(chosen("probes.sites", config.probes.sites, SITES))
        batches = len(chosen("probes.batch", config.probes.batch, BATCHES))
        rows = len(probe_steps(config)) * layers * sites * batches
        tables += CELL_BYTES + PROBE_BYTES * rows + math.ceil(STEP_BYTES * config.train.steps)
        weights = FLOAT * full_estimate(config, cell.card).weights
        adapters += weights if config.train.save_adapter else 0
        if config.checkpoint.every is not None:
            largest = max(largest, (1 + OPTIMIZERS[config.optimizer.name].states) * weights)
    return tables, adapters, CHECKPOINTS * largest


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
