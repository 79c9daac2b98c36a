"""What a sweep has still to do, for whoever looks on: other terminals, and the other processes of the same sweep.

A sweep posts a file in the folder of the study, ``results/<study>/sweeps/``, and holds a lock on it for as long as it
lives: a file without a lock is what a killed sweep left. How far the sweep is, is read from the cells themselves.
"""

import contextlib
import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from study.store import is_held, read_cell

WAITING = "waiting"
"""The state of a cell that a sweep has on its agenda and has not begun."""
CLOSED = ("complete", "diverged", "failed")


@dataclass(frozen=True)
class Planned:
    """A cell that is to be trained: what its record will say of it, its ``pack`` (from 1), its ``cost`` in FLOPs."""

    record: dict[str, Any]
    pack: int
    cost: float

    @property
    def id(self) -> str:
        """The cell's id."""
        return str(self.record["cell_id"])


@dataclass(frozen=True)
class Agenda:
    """What a sweep that is alive trains in one study."""

    posted: str
    cells: list[Planned]

    @property
    def packs(self) -> int:
        """How many packs the cells are in."""
        return max(cell.pack for cell in self.cells)


@dataclass(frozen=True)
class Progress:
    """How far a sweep is: its cells by state, its packs, its ``work`` (0 to 1, by cost), and seconds left if known."""

    states: Counter[str]
    packs: int
    packs_done: int
    work: float
    seconds_left: float | None

    @property
    def closed(self) -> int:
        """Cells that need no more training."""
        return sum(self.states[state] for state in CLOSED)

    @property
    def cells(self) -> int:
        """All cells on the agenda."""
        return self.states.total()


@contextlib.contextmanager
def posted(study_dir: Path, cells: Sequence[Planned]) -> Iterator[None]:
    """Let others see, while inside, that ``cells`` are to be trained; clears away what killed sweeps left."""
    folder = study_dir / "sweeps"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.json"):
        if not is_held(path):
            path.unlink(missing_ok=True)
    now = datetime.now(UTC)
    path = folder / f"{now:%Y%m%dT%H%M%S%f}-{os.getpid()}.json"
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # To the second, as records say when a cell began: what began before is another sweep's.
        json.dump(
            {
                "posted": now.isoformat(timespec="seconds"),
                "cells": [asdict(cell) for cell in cells],
            },
            file,
        )
        file.flush()
        partial.rename(path)  # the lock goes with it: nobody ever sees it whole and not held
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another sweep's file is still in it
                folder.rmdir()


def agendas(study_dir: Path) -> list[Agenda]:
    """The agendas of the sweeps that are alive in a study, oldest first."""
    found = []
    for path in sorted((study_dir / "sweeps").glob("*.json")):
        with contextlib.suppress(FileNotFoundError):  # it ended just now
            if is_held(path):
                content = json.loads(path.read_text())
                found.append(
                    Agenda(content["posted"], [Planned(**cell) for cell in content["cells"]])
                )
    return found


def records(study_dir: Path, agenda: Agenda) -> list[dict[str, Any]]:
    """The record of every cell on the agenda as of now; one that has not begun is ``waiting``."""
    found = []
    for cell in agenda.cells:
        record = read_cell(study_dir / "cells" / cell.id)
        begun = record is not None and record["started"] >= agenda.posted
        found.append(record if record is not None and begun else cell.record | {"status": WAITING})
    return found


def progress(study_dir: Path, agenda: Agenda) -> Progress:
    """How far a sweep is. What is left takes as long as what was done, in proportion to its cost: a cell of rank 1024
    takes several times as long as one of rank 4, and packs that run at the same time share the work."""
    now = records(study_dir, agenda)
    total = sum(cell.cost for cell in agenda.cells)
    spent = left = 0.0
    for cell, record in zip(agenda.cells, now, strict=True):
        share = 0.0
        if record["status"] != WAITING:
            share = (record.get("steps_done", -1) + 1) / (record["config"]["train"]["steps"] + 1)
        spent += cell.cost * share
        left += 0.0 if record["status"] in CLOSED else cell.cost * (1 - share)
    open_packs = {
        c.pack
        for c, record in zip(agenda.cells, now, strict=True)
        if record["status"] not in CLOSED
    }
    began = min((record["started"] for record in now if record["status"] != WAITING), default=None)
    seconds_left = None
    if began is not None and spent:
        seconds_left = (
            (datetime.now(UTC) - datetime.fromisoformat(began)).total_seconds() * left / spent
        )
    states = Counter(record["status"] for record in now)
    return Progress(
        states, agenda.packs, agenda.packs - len(open_packs), 1 - left / total, seconds_left
    )
