"""What a sweep has still to train, as other terminals and the sweep's own processes see it.

A sweep writes a file to ``results/<study>/sweeps/`` and holds a lock beside it as long as it lives.
A file whose lock is free was left by a killed sweep. Progress is read from the cells themselves.
"""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from study.store import is_held, lock, read_cell, write_text
from study.vocabulary.statuses import ENDED

WAITING = "waiting"
"""The state of a cell that is on an agenda and has not begun."""


@dataclass(frozen=True)
class Planned:
    """A cell to train. ``record``: as before it begins. ``pack``: from 1. ``cost``: in FLOPs."""

    record: dict[str, Any]
    pack: int
    cost: float

    @property
    def id(self) -> str:
        """The cell's id."""
        return str(self.record["cell_id"])


@dataclass(frozen=True)
class Agenda:
    """The cells that a live sweep trains in one study. ``posted``: when it began, UTC."""

    posted: str
    cells: list[Planned]

    @property
    def packs(self) -> int:
        """The number of packs."""
        return max(cell.pack for cell in self.cells)


@dataclass(frozen=True)
class Progress:
    """How far a sweep is.

    ``states``: cells by state. ``work``: the share that is done, 0 to 1, weighted by cost.
    ``seconds_left``: None until the first step is done.
    """

    states: Counter[str]
    packs: int
    packs_done: int
    work: float
    seconds_left: float | None

    @property
    def closed(self) -> int:
        """The number of cells that need no more training."""
        return sum(self.states[state] for state in ENDED)

    @property
    def cells(self) -> int:
        """The number of cells on the agenda."""
        return self.states.total()


@contextlib.contextmanager
def posted(study_dir: Path, cells: Sequence[Planned]) -> Iterator[None]:
    """Inside, other processes see that ``cells`` are to be trained.

    First deletes the agendas of killed sweeps.
    """
    folder = study_dir / "sweeps"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("*.json"):
        if not is_held(_lock_of(left)):
            _delete(left)
    now = datetime.now(UTC)
    path = folder / f"{now:%Y%m%dT%H%M%S%f}-{os.getpid()}.json"
    # To the second, like the start of a cell: a cell that began earlier is another sweep's.
    content = {
        "posted": now.isoformat(timespec="seconds"),
        "cells": [asdict(cell) for cell in cells],
    }
    with lock(_lock_of(path)):  # taken first, so that nobody sees the agenda without its lock
        write_text(path, json.dumps(content))
        try:
            yield
        finally:
            _delete(path)
            with contextlib.suppress(OSError):  # another sweep's file is in it
                folder.rmdir()


def agendas(study_dir: Path) -> list[Agenda]:
    """The agendas of a study's live sweeps, oldest first."""
    found = []
    for path in sorted((study_dir / "sweeps").glob("*.json")):
        with contextlib.suppress(FileNotFoundError):  # the sweep ended just now
            if is_held(_lock_of(path)):
                content = json.loads(path.read_text())
                cells = [Planned(**cell) for cell in content["cells"]]
                found.append(Agenda(content["posted"], cells))
    return found


def records(study_dir: Path, agenda: Agenda) -> list[dict[str, Any]]:
    """The record of every cell on the agenda as of now; ``waiting`` if the cell has not begun."""
    found = []
    for cell in agenda.cells:
        record = read_cell(study_dir / "cells" / cell.id)
        begun = record is not None and record["started"] >= agenda.posted
        found.append(record if record is not None and begun else cell.record | {"status": WAITING})
    return found


def progress(study_dir: Path, agenda: Agenda) -> Progress:
    """How far a sweep is.

    Time left is in proportion to cost, not to cells: rank 1024 takes several times as long as rank
    4, and packs that run at the same time share the work.
    """
    now = records(study_dir, agenda)
    total = sum(cell.cost for cell in agenda.cells)
    spent = left = 0.0
    open_packs = set()
    for cell, record in zip(agenda.cells, now, strict=True):
        share = _share_done(record)
        spent += cell.cost * share
        if record["status"] not in ENDED:
            left += cell.cost * (1 - share)
            open_packs.add(cell.pack)
    began = min((record["started"] for record in now if record["status"] != WAITING), default=None)
    seconds_left = None
    if began is not None and spent:
        so_far = (datetime.now(UTC) - datetime.fromisoformat(began)).total_seconds()
        seconds_left = so_far * left / spent
    states = Counter(record["status"] for record in now)
    done = agenda.packs - len(open_packs)
    return Progress(states, agenda.packs, done, 1 - left / total, seconds_left)


def _share_done(record: dict[str, Any]) -> float:
    """The share of a cell's steps that is done, 0 to 1."""
    if record["status"] == WAITING:
        return 0.0
    return float((record.get("steps_done", -1) + 1) / (record["config"]["train"]["steps"] + 1))


def _lock_of(agenda: Path) -> Path:
    return agenda.with_suffix(".lock")


def _delete(agenda: Path) -> None:
    agenda.unlink(missing_ok=True)
    _lock_of(agenda).unlink(missing_ok=True)
