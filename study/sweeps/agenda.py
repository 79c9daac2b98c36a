"""What a sweep has still to train, as other terminals and the sweep's own processes see it.

A sweep writes a file to ``results/<study>/sweeps/`` and holds a lock beside it as long as it lives.
A file whose lock is free was left by a killed sweep. Progress is read from the cells themselves.
"""

import contextlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from study.store import Lock, cell_folders, is_held, read_cell, write_text
from study.store.files import make_folder, remove, storing
from study.sweeps.pace import CellTime, began, seconds_left
from study.vocabulary.statuses import DONE, ENDED

WAITING = "waiting"
"""The state of a cell that is on an agenda and has not begun."""


@dataclass(frozen=True)
class Planned:
    """A cell to train.

    ``record``: as before it begins. ``pack``: from 1. ``cost``: in FLOPs, of all of its steps.
    ``first_step``: where it continues; 0 if it has no checkpoint. ``shares``: pairs (step, share of
    its time that is over after it); without them all steps take as long.
    """

    record: dict[str, Any]
    pack: int
    cost: float
    first_step: int = 0
    shares: list[list[float]] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The cell's id."""
        return str(self.record["cell_id"])

    @property
    def share_before(self) -> float:
        """The share of its time that was over before the sweep, 0 to 1."""
        return self.share(self.first_step - 1)

    def share(self, step: int) -> float:
        """The share of its time that is over after ``step``, 0 to 1; 0 after step -1."""
        last = self.record["config"]["train"]["steps"]
        steps, shares = zip([-1, 0.0], *(self.shares or [[last, 1.0]]), strict=True)
        return float(np.interp(step, steps, shares))


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
    ``seconds_left``: None until enough was measured (:mod:`study.sweeps.pace`).
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
def posted(study_dir: Path, cells: Sequence[Planned]) -> Iterator[Path]:
    """Inside, other processes see that ``cells`` are to be trained. Yields the agenda's file.

    First deletes the agendas of killed sweeps. Raises :class:`~study.store.files.StorageError` if
    the folder can't be written.
    """
    folder = study_dir / "sweeps"
    make_folder(folder)
    for left in (*folder.glob("*.json"), *folder.glob("*.stop")):
        if not is_held(_lock_of(left)):
            _delete(left)
            remove(left)
    now = datetime.now(UTC)
    path = folder / f"{now:%Y%m%dT%H%M%S%f}-{os.getpid()}.json"
    # To the second, like the start of a cell: a cell that began earlier is another sweep's.
    content = {
        "posted": now.isoformat(timespec="seconds"),
        "cells": [asdict(cell) for cell in cells],
    }
    held = Lock(_lock_of(path))  # taken first, so that nobody sees the agenda without its lock
    with storing(path):
        held.acquire()
        write_text(path, json.dumps(content))
    try:
        yield path
    finally:
        # The folder stays: another sweep may be about to write to it.
        with contextlib.suppress(OSError):  # a full or lost disk
            _delete(path)
        held.release()


def agendas(study_dir: Path) -> list[Agenda]:
    """The agendas of a study's live sweeps, oldest first. A damaged one is left out."""
    found = []
    for path in sorted((study_dir / "sweeps").glob("*.json")):
        if is_held(_lock_of(path)) and (agenda := read_agenda(path)):
            found.append(agenda)
    return found


def read_agenda(path: Path) -> Agenda | None:
    """The agenda in a file; None if the sweep has just ended, or if the file is damaged."""
    try:
        content = json.loads(path.read_text())
        cells = [Planned(**cell) for cell in content["cells"]]
        # What readers use, so that a damaged file is found here and nowhere else.
        numbers = [cell.share_before + cell.cost + cell.pack for cell in cells]
        posted = datetime.fromisoformat(content["posted"])
        whole = all(map(math.isfinite, numbers)) and posted.tzinfo and all(c.id for c in cells)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError):
        return None
    return Agenda(content["posted"], cells) if whole and cells else None


Done: TypeAlias = dict[str, dict[str, Any]]
"""The records of cells that are done, by id. They change no more in a sweep, so a process that
follows one reads each of them once; with thousands of cells this is most of the work."""


def records(study_dir: Path, agenda: Agenda, done: Done | None = None) -> list[dict[str, Any]]:
    """The record of every cell on the agenda as of now; ``waiting`` if the cell has not begun.

    Those that are done are added to ``done``, and taken from there the next time.
    """
    done = {} if done is None else done
    there = {folder.name for folder in cell_folders(study_dir)}
    found = []
    for cell in agenda.cells:
        record = done.get(cell.id)
        if record is None and cell.id in there:
            record = read_cell(study_dir / "cells" / cell.id)
            if record is not None and record["status"] in DONE:
                done[cell.id] = record
        begun = record is not None and _has_begun(record, agenda.posted)
        found.append(record if record is not None and begun else cell.record | {"status": WAITING})
    return found


def _has_begun(record: dict[str, Any], posted: str) -> bool:
    """Whether a cell was trained since ``posted``: it runs, has ended, or has stopped."""
    if record["status"] in DONE or record["status"] == "running":
        return True  # by whichever process: it was not done when the agenda was posted
    return began(record) >= posted


def progress(study_dir: Path, agenda: Agenda, done: Done | None = None) -> Progress:
    """How far a sweep is. ``done``: see :func:`records`.

    Time left is in proportion to cost, not to cells: rank 1024 takes several times as long as rank
    4, and packs that run at the same time share the work. Steps that a cell had before the sweep
    count neither as work nor as time.
    """
    now = records(study_dir, agenda, done)
    total = left = 0.0
    open_packs = set()
    shares = [_share_done(cell, record) for cell, record in zip(agenda.cells, now, strict=True)]
    for cell, record, share in zip(agenda.cells, now, shares, strict=True):
        total += cell.cost * (1 - cell.share_before)
        if record["status"] not in ENDED:
            left += cell.cost * (1 - share)
            open_packs.add(cell.pack)
    states = Counter(record["status"] for record in now)
    packs_done = agenda.packs - len(open_packs)
    times = [
        CellTime(
            record,
            study_dir / "cells" / cell.id,
            cell.cost,
            cell.first_step,
            cell.share_before,
            cell.share(cell.first_step),
            share,
        )
        for cell, record, share in zip(agenda.cells, now, shares, strict=True)
    ]
    seconds = seconds_left(times, agenda.posted)
    return Progress(states, agenda.packs, packs_done, 1 - left / (total or 1), seconds)


def _share_done(cell: Planned, record: dict[str, Any]) -> float:
    """The share of a cell's time that is over, 0 to 1; not less than before the sweep.

    A damaged record does not say.
    """
    try:
        return max(cell.share_before, cell.share(record.get("steps_done", -1)))
    except (KeyError, TypeError):
        return cell.share_before


def _lock_of(agenda: Path) -> Path:
    return agenda.with_suffix(".lock")


def _delete(agenda: Path) -> None:
    remove(agenda)
    remove(_lock_of(agenda))
