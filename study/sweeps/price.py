"""What a sweep costs: on devices that need not be here, and on disk.

Nothing is read and nothing is measured. Every sequence counts as full and every token as a target,
so FLOPs and bytes are upper bounds for data with shorter rows. Speeds are assumptions
(:mod:`study.vocabulary.devices`, :data:`study.sweeps.estimate.ACHIEVED_SHARE`).
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from study.adapters import Contraction, resolve_targets
from study.config import CellConfig, chosen, probe_steps
from study.models import ModelCard
from study.sweeps.cells import Cell
from study.sweeps.estimate import FLOAT, MEMORY_SHARE, Estimate, estimate, fold_bytes
from study.sweeps.fleet import Fleet
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.quantities import BATCHES, SITES

CELL_BYTES = 20_000
"""Of a record, a configuration and the headers of tables. Measured: 8 to 35 kB."""
PROBE_BYTES = 18
"""Of a row of probes.parquet, if every site had a row in every layer. Measured: 17 to 30."""
STEP_BYTES = 25
"""Of a row of metrics.parquet."""
CHECKPOINTS = 2
"""A new checkpoint is whole before the earlier one is deleted."""


@dataclass(frozen=True)
class CellPrice:
    """One cell: its estimate, the least number of devices that hold it, and its time on them.

    ``devices``: None if no number of devices holds it. ``part``: the share of each of them, or the
    whole estimate. ``seconds``: on all of them together.
    """

    cell: Cell
    need: Estimate
    devices: int | None
    part: Estimate
    seconds: float


@dataclass(frozen=True)
class DiskPrice:
    """Bytes on disk: of the tables and records of all cells, of the adapters that are kept, and of
    the checkpoints of the largest cell while it trains.
    """

    tables: int
    adapters: int
    checkpoints: int


def cell_price(cell: Cell, devices: Fleet) -> CellPrice:
    """The price of a cell on one kind of device."""
    need = paper_estimate(cell.config, cell.card)
    count = least_devices(need, MEMORY_SHARE["cuda"] * devices.memory)
    part = need.divided(count or 1)
    seconds = part.seconds(devices.rate(cell.config.precision))
    return CellPrice(cell, need, count, part, seconds)


def paper_estimate(config: CellConfig, card: ModelCard, device: str = "cuda") -> Estimate:
    """The estimate of a cell whose sequences are all full and all targets."""
    tokens = config.train.batch_size * config.train.accumulation * config.data.sequence_length
    contraction = Contraction(config.adapter.contraction, tokens)
    return estimate(config, card, tokens, tokens, contraction, device)


def least_devices(need: Estimate, memory: float) -> int | None:
    """The least power of two of devices with ``memory`` bytes each that hold a cell.

    None if 4096 don't: some of it is whole on every device.
    """
    counts = (2**power for power in range(13))
    return next((n for n in counts if fold_bytes([need.divided(n)]) <= memory), None)


def makespan(jobs: Sequence[tuple[int, float]], devices: int) -> float:
    """Seconds until all jobs have ended, if the longest one starts first.

    ``jobs``: pairs of the devices that a job takes, and its seconds on them. A job that takes more
    than there are is not counted.
    """
    free = [0.0] * devices
    for wanted, seconds in sorted(jobs, key=lambda job: -job[1]):
        if wanted <= devices:
            ends = max(heapq.heappop(free) for _ in range(wanted)) + seconds
            for _ in range(wanted):
                heapq.heappush(free, ends)
    return max(free)


def disk_price(cells: Sequence[Cell]) -> DiskPrice:
    """What the cells of a sweep leave on disk."""
    kept = sum(_weights(cell) * FLOAT for cell in cells if cell.config.train.save_adapter)
    states = {cell.id: 1 + OPTIMIZERS[cell.config.optimizer.name].states for cell in cells}
    largest = max((FLOAT * states[c.id] * _weights(c) for c in cells if _saves(c)), default=0)
    return DiskPrice(sum(map(_table_bytes, cells)), kept, CHECKPOINTS * largest)


def _saves(cell: Cell) -> bool:
    return cell.config.checkpoint.every is not None


def _weights(cell: Cell) -> int:
    return paper_estimate(cell.config, cell.card).weights


def _table_bytes(cell: Cell) -> int:
    config = cell.config
    layers = 1 + len(resolve_targets(cell.card.targets, config.adapter.targets))
    sites = len(chosen("probes.sites", config.probes.sites, SITES))
    batches = len(chosen("probes.batch", config.probes.batch, BATCHES))
    rows = len(probe_steps(config)) * layers * sites * batches
    return CELL_BYTES + PROBE_BYTES * rows + math.ceil(STEP_BYTES * config.train.steps)
