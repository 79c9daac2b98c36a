"""Cells trained in one fold, for tests of the loop."""

import math
from collections.abc import Sequence
from dataclasses import replace

from study.config import CellConfig
from study.data import Corpus
from study.models import FrozenBase
from study.store.checkpoints import Checkpoint
from study.sweeps.cells import Cell
from study.sweeps.run import Worker, train_all, train_pack
from study.training.loop import CellStep, train
from study.training.run import Run


def trained(
    base: FrozenBase, corpus: Corpus, *cells: CellConfig, resume: Sequence[Checkpoint] = ()
) -> list[list[CellStep]]:
    """Each cell's steps, up to the one where it diverged."""
    runs = [Run.of(config, corpus) for config in cells]
    by_step = list(train(base, corpus, runs, resume))
    return [[row for row in of_cell if row] for of_cell in zip(*by_step, strict=True)]


def copied(snapshot: Checkpoint) -> Checkpoint:
    """The same state in memory of its own on the host: training on does not change it."""
    own = {name: x.copy() for name, x in snapshot.tensors.items()}
    return replace(snapshot, tensors=own)


def series(steps: Sequence[CellStep], name: str) -> list[float]:
    """A metric by step; NaN where it was not measured."""
    return [step.metrics.get(name, math.nan) for step in steps]


def run(cells: Sequence[Cell]) -> None:
    """Train the cells of one pack. Raises :class:`StudyError`, naming the first, if some failed."""
    with Worker() as worker:
        train_all(cells, lambda free: [train_pack(free, worker)])
