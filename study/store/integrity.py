"""``study check``: every file of a study, compared with what was written."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.errors import StudyError
from study.store import checkpoints
from study.store.files import DRAFT, Damaged
from study.store.lock import is_claimed
from study.store.records import (
    CHECKPOINTS,
    adapter_damage,
    cell_folders,
    damage,
    is_archived,
    no_study,
    read_record,
)
from study.store.rows import SCHEMAS
from study.store.tables import DISTANCES, distances_of, load_cell_table
from study.store.writer import ASIDE
from study.vocabulary.statuses import ENDED


@dataclass(frozen=True)
class Problem:
    """A file that is not what was written.

    - ``path``: the file, or the folder of its cell;
    - ``reason``: in words;
    - ``repair``: the shell command after which ``study train`` or ``study distances`` makes it
      again; of an archive, the one that gets it again;
    - ``is_damage``: False for a file that a killed process left, which nothing reads.
    """

    path: Path
    reason: str
    repair: str
    is_damage: bool = True


def check_study(study_dir: Path) -> Iterator[Problem]:
    """The problems of a study: records, tables, adapters, checkpoints, distances and archive.

    It reads every file and writes nothing. Files that a live process may be writing are left out.
    Raises :class:`~study.errors.StudyError` if the folder holds no study, or a damaged archive.
    """
    folders = cell_folders(study_dir)
    if not folders:
        raise no_study(study_dir)
    for folder in folders:
        yield from _check_cell(folder, study_dir)
    cells = study_dir / "cells"
    for path in sorted(cells.iterdir()) if cells.is_dir() else ():
        if not path.is_dir():
            yield Problem(path, "is not a cell, and nothing reads it", _remove(path), False)
    for path in sorted(study_dir.glob(f"*{DRAFT}")):
        yield Problem(path, "was left by a process that was killed", _remove(path), False)
    try:
        distances_of(study_dir)
    except StudyError:
        path = study_dir / f"{DISTANCES}.parquet"
        yield Problem(path, "is damaged", _remove(path))


def _check_cell(folder: Path, study_dir: Path) -> Iterator[Problem]:
    record = read_record(folder)
    if record is None:
        if any(folder.glob("*.parquet")):
            yield Problem(folder, "tables without record.json", _move(folder, study_dir), False)
        return
    if reason := _first_damage(folder, record):
        repair = f"# get {study_dir} again" if is_archived(folder) else _move(folder, study_dir)
        yield Problem(folder, reason, repair)
    elif record["status"] in ENDED:
        yield from _leftovers(folder)
    elif not is_claimed(folder):
        for path, why in checkpoints.unusable(folder, folder.name):
            yield Problem(path, why, _remove(path))


def _first_damage(folder: Path, record: dict[str, Any]) -> str | None:
    """Why the cell must be trained afresh; None if it need not."""
    if record["status"] == "unreadable":
        return str(record["error"])
    if record["status"] not in ENDED:
        return None
    if found := damage(folder, record):
        return found
    try:
        for name in SCHEMAS:
            load_cell_table(folder, name, record=record)
    except Damaged as error:
        return str(error)
    return None if is_archived(folder) else adapter_damage(folder, record)


def _leftovers(folder: Path) -> Iterator[Problem]:
    """What the process that ended the cell could not delete."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in (".arrows", DRAFT) or path.name == CHECKPOINTS:
            yield Problem(path, "was left by a process that was killed", _remove(path), False)


def _remove(path: Path) -> str:
    return shlex.join(["rm", *(["-r"] if path.is_dir() else []), "--", str(path)])


def _move(folder: Path, study_dir: Path) -> str:
    """Out of the way, under a name that no other file has."""
    aside = study_dir / ASIDE
    target, number = aside / folder.name, 1
    while target.exists():
        target, number = aside / f"{folder.name}.{number}", number + 1
    make = shlex.join(["mkdir", "-p", "--", str(aside)])
    return f"{make} && {shlex.join(['mv', '--', str(folder), str(target)])}"
