"""A cell that goes on from a snapshot follows the same path: bit for bit in a fold of the same
cells, and within rounding in any other.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch

from study.config import CellConfig
from study.data import Corpus
from study.models import FrozenBase
from study.store.checkpoints import load_newest, save
from study.training.checkpoint import Snapshot
from study.training.loop import CellStep, train
from study.training.run import Run
from study.vocabulary.optimizers import OPTIMIZERS

Build = Callable[..., CellConfig]
Rows = list[CellStep | None]


def trained(
    base: FrozenBase,
    corpus: Corpus,
    cells: Sequence[CellConfig],
    resume: Sequence[Snapshot] = (),
) -> Iterator[Rows]:
    runs = [Run.of(config, corpus, base.device) for config in cells]
    return train(base, corpus, runs, resume)


def with_snapshots(
    base: FrozenBase, corpus: Corpus, cells: Sequence[CellConfig]
) -> tuple[list[Rows], list[list[Snapshot]]]:
    """All steps of a fold, and the state of every cell after each of them but the last."""
    steps, snapshots = [], []
    for rows in trained(base, corpus, cells):
        steps.append(rows)
        if len(steps) <= cells[0].train.steps:
            snapshots.append([row.snapshot().copied() for row in rows if row])
    return steps, snapshots


def assert_same(ours: Sequence[Rows], theirs: Sequence[Rows]) -> None:
    """The same numbers bit for bit, in every table, and the same adapters."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a is not None
            assert b is not None
            rows = [pd.DataFrame([step.metrics]).drop(columns="seconds") for step in (a, b)]
            pd.testing.assert_frame_equal(*rows, check_exact=True)
            assert a.diverged == b.diverged
            for name in ("probes", "truncations"):
                tables = getattr(a, name), getattr(b, name)
                assert (tables[0] is None) == (tables[1] is None)
                if tables[0] is not None:
                    pd.testing.assert_frame_equal(*tables, check_exact=True)
            assert (a.adapter is None) == (b.adapter is None)
            for layer in a.adapter or {}:
                assert torch.equal(a.adapter[layer].A_RD, b.adapter[layer].A_RD)
                assert torch.equal(a.adapter[layer].B_OR, b.adapter[layer].B_OR)


def assert_resumes(
    base: FrozenBase, corpus: Corpus, cells: Sequence[CellConfig], folder: Path
) -> None:
    """Resume after every step, from a file, and compare with the run that was not disturbed."""
    steps, snapshots = with_snapshots(base, corpus, cells)
    for at, of_step in enumerate(snapshots):
        resume = []
        for k, snapshot in enumerate(of_step):
            place = folder / f"{at}.{k}"
            place.mkdir()
            save(place, snapshot.checkpoint("a cell"))
            checkpoint = load_newest(place, "a cell")
            assert checkpoint is not None
            assert checkpoint.step == at + 1
            resume.append(Snapshot.of(checkpoint))
        assert_same(list(trained(base, corpus, cells, resume)), steps[at + 1 :])


EVERYTHING = (
    "train.save_adapter=true",
    "train.steps=6",
    "probes.steps=[0,1,2,3,5,6]",
    "probes.truncations=[1]",
)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer(
    tiny_base: FrozenBase, corpus: Corpus, cell: Build, optimizer: str, tmp_path: Path
) -> None:
    config = cell(*EVERYTHING, f"optimizer={optimizer}", "optimizer.loraplus_lr_ratio=4")
    assert_resumes(tiny_base, corpus, [config], tmp_path)
