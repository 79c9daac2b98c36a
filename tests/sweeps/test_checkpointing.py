"""When checkpoints are due, and what happens when one can't be written."""

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from study.config import CellConfig, Interval
from study.errors import StudyError
from study.store.checkpoints import load_newest
from study.sweeps.checkpointing import Checkpoints, Schedule, newest
from study.training.checkpoint import Snapshot
from study.training.loop import CellStep
from study.training.results import Numbers

Build = Callable[..., CellConfig]
IDS = ("aaaaaaaaaaaa", "bbbbbbbbbbbb")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def due_at(every: Interval | None, seconds: float, steps: int, first: int = 0) -> list[int]:
    """The steps after which checkpoints are taken, if a step takes ``seconds``."""
    clock = Clock()
    schedule, found = Schedule(every, clock), []
    for step in range(first, first + steps):
        clock.now += seconds
        if schedule.due(step):
            schedule.taken(step, 0.0)
            found.append(step)
    return found


def test_every_n_steps_and_every_n_seconds() -> None:
    assert due_at(Interval(steps=1), 1, 4) == [0, 1, 2, 3]
    assert due_at(Interval(steps=3), 1, 9) == [2, 5, 8]
    assert due_at(Interval(steps=3), 1, 9, first=100) == [102, 105, 108]
    assert due_at(Interval(seconds=60), 25, 9) == [2, 5, 8]
    assert due_at(Interval(seconds=60), 100, 3) == [0, 1, 2]
    assert due_at(None, 1e6, 9) == []


def test_checkpoints_take_a_twentieth_of_the_time() -> None:
    """One that costs ten seconds is followed by 200 seconds without one, not by 60."""
    clock = Clock()
    schedule = Schedule(Interval(seconds=60), clock)
    clock.now = 60
    assert schedule.due(5)
    schedule.taken(5, 10.0)
    clock.now = 60 + 199
    assert not schedule.due(6)
    clock.now = 60 + 200
    assert schedule.due(7)


class Fold:
    """Two cells that train without a model: the state is a counter."""

    def __init__(self, cell: Build, folder: Path, *overrides: str) -> None:
        config = cell("train.steps=9", f"results_dir={folder}", *overrides)
        self.cells: list[Any] = [
            SimpleNamespace(id=name, config=config, folder=folder / name) for name in IDS
        ]
        for each in self.cells:
            each.folder.mkdir(parents=True)
        self.weight = torch.zeros(2, 3)
        self.synced: list[str] = []
        self.lines: list[str] = []
        self.during: Callable[[], None] = lambda: None
        writers: list[Any] = [SimpleNamespace(sync=lambda n=name: self.sync(n)) for name in IDS]
        self.checkpoints = Checkpoints(self.cells, writers, self.lines.append)

    def sync(self, name: str) -> None:
        self.synced.append(name)
        self.during()

    def step(self, step: int, diverged: bool = False) -> list[CellStep]:
        self.weight.fill_(step)
        snapshot = Snapshot(step + 1, {"weights/a": self.weight}, {"device": "cpu"})
        numbers = Numbers({"step": [step] * 2}, torch.tensor([True, not diverged]))
        return [CellStep(k, numbers, (), capture=lambda: snapshot) for k in range(2)]

    def on_disk(self, cell: int = 0) -> tuple[int, float] | None:
        """The newest checkpoint's step, and the weight in it."""
        found = load_newest(self.cells[cell].folder, IDS[cell])
        return None if found is None else (found.step, float(found.tensors["weights/a"].mean()))


def test_the_newest_two_are_kept_and_none_follows_the_last_step(
    cell: Build, tmp_path: Path
) -> None:
    fold = Fold(cell, tmp_path, "checkpoint.every=1")
    for step in range(9):
        assert fold.checkpoints.due(step)
        fold.checkpoints.write(fold.step(step))
    assert not fold.checkpoints.due(9)
    assert fold.on_disk() == (9, 8.0)
    assert len(list((tmp_path / IDS[0] / "checkpoints").glob("*.safetensors"))) == 2


def test_no_step_is_written_twice(cell: Build, tmp_path: Path) -> None:
    fold = Fold(cell, tmp_path, "checkpoint.every=null")
    fold.checkpoints.write(fold.step(3))
    assert fold.on_disk() == (4, 3.0)
    assert len(fold.synced) == 2
    fold.checkpoints.write(fold.step(3))
    assert len(fold.synced) == 2
    fold.checkpoints.write([None, None])


def test_a_cell_that_diverged_gets_none(cell: Build, tmp_path: Path) -> None:
    fold = Fold(cell, tmp_path, "checkpoint.every=1")
    fold.checkpoints.write(fold.step(0, diverged=True))
    assert fold.synced == [IDS[0]]
    fold.checkpoints.write([fold.step(1)[0], None])
    assert fold.synced == [IDS[0]] * 2


def test_a_full_disk_is_one_line_and_training_goes_on(cell: Build, tmp_path: Path) -> None:
    fold = Fold(cell, tmp_path, "checkpoint.every=1")
    fold.checkpoints.write(fold.step(0))

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    fold.during = full
    for step in (1, 2, 3):
        fold.checkpoints.write(fold.step(step))
    assert fold.lines == [
        f"no checkpoint could be written to {tmp_path / IDS[0]} (No space left on device): "
        "training goes on without"
    ]
    assert fold.on_disk() == (1, 0.0)
    fold.during = lambda: None
    fold.checkpoints.write(fold.step(4))
    assert fold.on_disk() == (5, 4.0)
    fold.during = full
    fold.checkpoints.write(fold.step(5))
    assert len(fold.lines) == 2, "after one that was written, the next failure is told again"


def test_what_is_no_error_of_the_disk_reaches_the_loop(cell: Build, tmp_path: Path) -> None:
    """Such as a claim that another process has taken over."""
    fold = Fold(cell, tmp_path, "checkpoint.every=1")

    def lost() -> None:
        raise StudyError("another process has taken the cell over")

    fold.during = lost
    with pytest.raises(StudyError, match="taken the cell over"):
        fold.checkpoints.write(fold.step(0))
    assert fold.on_disk() is None


def test_a_dropout_stream_of_another_device_is_not_continued(cell: Build, tmp_path: Path) -> None:
    fold = Fold(cell, tmp_path, "checkpoint.every=1", "adapter.dropout=0.1")
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    said: list[str] = []
    assert newest(fold.cells[0], cpu, said.append) is None
    fold.checkpoints.write(fold.step(3))
    found = newest(fold.cells[0], cpu, said.append)
    assert found is not None
    assert (found.step, found.tensors["weights/a"].tolist()) == (4, [[3.0] * 3] * 2)
    assert said == []
    assert newest(fold.cells[0], cuda, said.append) is None
    assert len(said) == 1
    assert "dropout stream of device=cpu" in said[0]
