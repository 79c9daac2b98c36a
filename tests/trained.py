"""Cells trained in one fold, for tests of the loop."""

import math
from collections.abc import Sequence
from dataclasses import replace

from study.config import CellConfig
from study.data.batches import Corpus
from study.models import FrozenBase
from study.store.checkpoints import Checkpoint
from study.training.loop import CellStep, train


def trained(base: FrozenBase, corpus: Corpus, *cells: CellConfig) -> list[list[CellStep]]:
    """Each cell's steps, up to the one where it diverged."""
    by_step = train(base, corpus, cells)
    return [[row for row in of_cell if row] for of_cell in zip(*by_step, strict=True)]


def copied(state: Checkpoint) -> Checkpoint:
    """The same state in memory of its own: training on does not change it."""
    return replace(state, tensors={name: x.copy() for name, x in state.tensors.items()})


def series(steps: Sequence[CellStep], name: str) -> list[float]:
    """A metric by step; NaN where it was not measured."""
    return [step.metrics.get(name, math.nan) for step in steps]
