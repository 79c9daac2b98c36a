"""A study on disk that may still be training. Only what changed is read again.

A cell that has ended is read again only if its files change. A running cell is read again when its
streams have grown. A cell that can't be read does not disturb the others, and neither does one that
is deleted, or made again, at any moment.
"""

import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from study.dashboard.packing import Scale, pack_message, pack_values
from study.dashboard.probes import CellProbes, Layers, Quantity, stacked
from study.errors import StudyError, one_line, printable
from study.figures.selection import Rule
from study.store import (
    SCHEMAS,
    cell_folders,
    cell_row,
    cells_table,
    is_archived,
    load_cell_table,
    read_cell,
)
from study.store.cells import FIRST
from study.store.records import no_study
from study.vocabulary.statuses import ENDED

FileStates = tuple[tuple[str, int, int], ...]

PACKED_TOGETHER = 1 << 20
"""The most values that are packed at once. Each takes some 50 bytes meanwhile."""

_log = logging.getLogger(__name__)


@dataclass
class FollowedCell:
    """A cell that can be read, at the last refresh.

    ``row``: its row of ``cells``. ``files``: the state of its files. ``revision`` increases when
    steps are replaced; it stays when steps are added.
    """

    folder: Path
    row: dict[str, Any]
    files: FileStates
    probes: CellProbes
    metrics: pa.Table
    revision: int = 0

    @property
    def ended(self) -> bool:
        return self.row["status"] in ENDED


@dataclass(frozen=True)
class Unreadable:
    """A cell that can't be read: why, and the state of its files then."""

    reason: str
    files: FileStates


class FollowedStudy:
    """The study in ``folder``. Only :meth:`refresh` reads new steps.

    ``followed``: the cells that can be read; ``unreadable``: the others. ``layers``: those of all
    studies on the page. Layer indices and revisions are valid within one process; ``instance``
    identifies it. Raises :class:`StudyError` if the folder holds no study.
    """

    def __init__(self, folder: Path, layers: Layers | None = None) -> None:
        self.folder = folder
        self.instance = secrets.token_hex(8)
        self.layers = Layers() if layers is None else layers
        self.followed: dict[str, FollowedCell] = {}
        self.unreadable: dict[str, Unreadable] = {}
        self._next_revision: dict[str, int] = {}
        self._logged: set[str] = set()
        self._has_news = False
        self.refresh()
        if not self.followed and not self.unreadable:
            raise no_study(folder)

    def refresh(self) -> bool:
        """Read what changed. Returns whether anything did. Each problem is logged once."""
        try:
            folders = _folders(self.folder)
        except OSError as error:
            self.log(f"can't read {self.folder}: {error.strerror}")
            return False
        changed, self._has_news = self._has_news, False
        changed |= self._forget({*self.followed, *self.unreadable} - {f.name for f in folders})
        for folder in folders:
            try:
                changed |= self._refresh_cell(folder)
            except Exception as error:  # Files of any content raise errors of many types.
                changed |= self._leave_out(folder, _reason(error), _file_states(folder))
        return changed

    def cells(self) -> pd.DataFrame:
        """The ``cells`` table at the last refresh, without the unreadable cells."""
        rows = [cell.row for cell in self.followed.values()]
        return cells_table(rows) if rows else pd.DataFrame(columns=list(FIRST))

    def quantities(self) -> list[Quantity]:
        """The quantities that any cell measured, in the order of the tables."""
        return list(
            dict.fromkeys(q for cell in self.followed.values() for q in cell.probes.quantities)
        )

    def values_message(self, quantity: Quantity, have: Mapping[str, tuple[int, int]]) -> bytes:
        """:meth:`values` as one message, which ``page/values.js`` reads."""
        found = self.values(quantity, have)
        header = {
            "instance": self.instance,
            "quantity": quantity,
            "width": len(self.layers),
            "blocks": [block for block, _ in found],
        }
        return pack_message(header, [packed for _, packed in found])

    def values(
        self, quantity: Quantity, have: Mapping[str, tuple[int, int]]
    ) -> list[tuple[dict[str, Any], bytes]]:
        """The values of ``quantity`` that the page lacks: a description and bytes for each cell.

        ``have``: by cell, the revision and the number of steps that the page has.
        """
        width = len(self.layers)
        asked: list[tuple[FollowedCell, int]] = []
        for cell_id, cell in list(self.followed.items()):
            revision, start = have.get(cell_id, (cell.revision, 0))
            if revision != cell.revision:
                start = 0
            if start >= len(cell.probes.steps):
                continue
            try:
                cell.probes.load(quantity)
            except Exception as error:  # The table was damaged or deleted after it was read.
                self._has_news |= self._leave_out(cell.folder, _reason(error), cell.files)
                continue
            asked.append((cell, start))
        packed = _packed([(cell.probes, start) for cell, start in asked], quantity, width)
        return [
            (
                {
                    "cell": cell.folder.name,
                    "revision": cell.revision,
                    "start": start,
                    "steps": cell.probes.steps[start:].tolist(),
                    **scale,
                },
                part,
            )
            for (cell, start), (scale, part) in zip(asked, packed, strict=True)
        ]

    def log(self, problem: str) -> None:
        """Log a problem, once."""
        if problem not in self._logged:
            self._logged.add(problem)
            _log.warning("%s", printable(problem))

    def _refresh_cell(self, folder: Path) -> bool:
        known, damaged = self.followed.get(folder.name), self.unreadable.get(folder.name)
        files = _file_states(folder)
        unchanged = known is not None and known.files == files
        if (known and unchanged and known.ended) or (damaged and damaged.files == files):
            return False
        record = read_cell(folder)
        if record is None:
            return self._forget({folder.name} & {*self.followed, *self.unreadable})
        if record["status"] == "unreadable":
            return self._leave_out(folder, str(record["error"]), files)
        # The status can change without the files: a running cell whose process died.
        if known and unchanged and known.row["status"] == record["status"]:
            return False
        self.followed[folder.name] = self._read(folder, record, files, known)
        self.unreadable.pop(folder.name, None)
        return True

    def _read(
        self, folder: Path, record: dict[str, Any], files: FileStates, known: FollowedCell | None
    ) -> FollowedCell:
        row = cell_row(record)
        Rule.of(row["scaling"], row["exponent"])  # Raises for a rule that this version lacks.
        probes = CellProbes.read(folder, self.layers, record)
        metrics = load_cell_table(folder, "metrics", record=record)
        revision = known.revision if known else self._next_revision.get(folder.name, 0)
        if known and not _extends(probes.steps.tolist(), known.probes.steps.tolist()):
            revision += 1
        return FollowedCell(folder, row, files, probes, metrics, revision)

    def _leave_out(self, folder: Path, reason: str, files: FileStates) -> bool:
        """A cell can't be read. Returns whether this is news."""
        self.log(f"cell {folder.name} of {self.folder} is unreadable: {reason}")
        found = Unreadable(reason, files)
        if self.unreadable.get(folder.name) == found:
            return False
        self._forget({folder.name} & {*self.followed})
        self.unreadable[folder.name] = found
        return True

    def _forget(self, cells: set[str]) -> bool:
        """These cells are gone. One that comes back has a new revision, so that a page that has
        its old steps gets the new ones."""
        for name in cells:
            self.unreadable.pop(name, None)
            if cell := self.followed.pop(name, None):
                self._next_revision[name] = cell.revision + 1
        return bool(cells)


def _packed(
    asked: Sequence[tuple[CellProbes, int]], quantity: Quantity, width: int
) -> list[tuple[Scale, bytes]]:
    """The values of cells from given steps on, packed. Cells of one layout are packed together."""
    groups: dict[tuple[int, int], list[int]] = {}
    for place, (probes, start) in enumerate(asked):
        groups.setdefault((id(probes.layout), start), []).append(place)
    found: dict[int, tuple[Scale, bytes]] = {}
    for (_, start), places in groups.items():
        size = max(1, PACKED_TOGETHER // (len(asked[places[0]][0].steps) * width))
        for some in (places[n : n + size] for n in range(0, len(places), size)):
            values, missing = stacked([asked[place][0] for place in some], quantity, width)
            found |= zip(some, pack_values(values[:, start:], missing[:, start:]), strict=True)
    return [found[place] for place in range(len(asked))]


def _folders(study_dir: Path) -> list[Path]:
    """The folders of the cells; none if the study was deleted.

    Raises ``OSError`` if the study is there and can't be read.
    """
    folders = cell_folders(study_dir)
    if folders and all(map(is_archived, folders)):
        return folders
    try:
        with os.scandir(study_dir / "cells"):
            return folders
    except (FileNotFoundError, NotADirectoryError):
        return []


def _file_states(folder: Path) -> FileStates:
    """Name, time of the last change and size of each of a cell's files.

    A change of rights is a change, since it may make a file readable.
    """
    tables = [f"{table}.{kind}" for table in SCHEMAS for kind in ("arrows", "parquet")]
    found = []
    for name in ("record.json", *tables):
        try:
            state = (folder / name).stat()
        except OSError:
            continue
        found.append((name, state.st_ctime_ns, state.st_size))
    return tuple(found)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, StudyError) else one_line(error)


def _extends(new: Sequence[int], old: Sequence[int]) -> bool:
    return list(new[: len(old)]) == list(old)
