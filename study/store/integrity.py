"""``study check``: every file of a study, compared with what was written."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from study.errors import one_line
from study.store import checkpoints
from study.store.archive import NOTE
from study.store.cell_tables import load_cell_table
from study.store.claims import is_claimed
from study.store.files import DRAFT
from study.store.records import (
    CHECKPOINTS,
    adapter_damage,
    cell_folders,
    damage,
    no_study,
    read_record,
)
from study.store.schemas import DISTANCES, SCHEMAS
from study.store.streams import Damaged, read_synced
from study.store.writer import ASIDE
from study.vocabulary.statuses import ENDED


@dataclass(frozen=True)
class Problem:
    """A file that is not what was written.

    - ``path``: the file, or the folder of its cell;
    - ``reason``: in words;
    - ``repair``: the shell command after which ``study train`` or ``study distances`` makes it
      again;
    - ``is_damage``: False for a file that a killed process left, which nothing reads.
    """

    path: Path
    reason: str
    repair: str
    is_damage: bool = True


def check_study(study_dir: Path) -> Iterator[Problem]:
    """The problems of a study: records, tables, streams, checkpoints and distances.

    It reads every file and writes nothing. Files that a live process may be writing are left out.
    Raises :class:`~study.errors.StudyError` if the folder holds no study.
    """
    folders = cell_folders(study_dir)
    if not folders:
        raise no_study(study_dir)
    for folder in folders:
        yield from _check_cell(folder, study_dir)
    for path in sorted((study_dir / "cells").iterdir()):
        if not path.is_dir() and path.name != NOTE:
            yield Problem(path, "is not a cell, and nothing reads it", _remove(path), False)
    yield from _check_distances(study_dir / f"{DISTANCES}.parquet")


def _check_cell(folder: Path, study_dir: Path) -> Iterator[Problem]:
    record = read_record(folder)
    if record is None:
        if any(folder.glob("*.parquet")):
            yield Problem(folder, "tables without record.json", _move(folder, study_dir), False)
        return
    reason = _first_damage(folder, record)
    if reason:
        yield Problem(folder, reason, _move(folder, study_dir))
    elif record["status"] in ENDED:
        yield from _leftovers(folder)
    elif not is_claimed(folder):
        for path, why in checkpoints.unusable(folder, folder.name):
            yield Problem(path, why, _remove(path))


def _first_damage(folder: Path, record: dict[str, Any]) -> str | None:
    """Why the cell must be trained afresh; None if it need not."""
    if record["status"] == "unreadable":
        return str(record["error"])
    if record["status"] in ENDED:
        return (
            damage(folder, record)
            or _first_unreadable(folder, record)
            or adapter_damage(folder, record)
        )
    if is_claimed(folder):
        return None
    try:
        for name, schema in SCHEMAS.items():
            read_synced(folder / f"{name}.arrows", schema, record)
    except Damaged as error:
        return str(error)
    return None


def _first_unreadable(folder: Path, record: dict[str, Any]) -> str | None:
    try:
        for name in SCHEMAS:
            load_cell_table(folder, name, record=record)
    except Damaged as error:
        return str(error)
    return None


def _leftovers(folder: Path) -> Iterator[Problem]:
    """What the process that ended the cell could not delete."""
    for path in sorted(folder.iterdir()):
        if path.suffix in (".arrows", DRAFT) or path.name == CHECKPOINTS:
            yield Problem(path, "was left by a process that was killed", _remove(path), False)


def _check_distances(path: Path) -> Iterator[Problem]:
    if not path.exists():
        return
    try:
        pq.read_table(path, page_checksum_verification=True).validate(full=True)
    except (OSError, ValueError, TypeError, KeyError, IndexError, pa.ArrowException) as error:
        yield Problem(path, f"is damaged: {one_line(error)}", _remove(path))


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
