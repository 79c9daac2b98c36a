"""A study on disk that may still be trained: read once, and afterwards only as far as it changed.

A cell that has ended is never read again unless its record is replaced; of one that runs, the streams are read again
when they have grown.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from study.dashboard.packing import pack_message, pack_values
from study.dashboard.probes import CellProbes, Layers, Quantity
from study.store import SCHEMAS, cell_folders, cells_table, load_cell, load_cell_table, load_cells

ENDED = ("complete", "diverged", "failed")


@dataclass
class FollowedCell:
    """A cell as of the last look. ``revision`` changes where its steps were replaced rather than added to."""

    folder: Path
    row: dict[str, Any]
    seen: tuple[Any, ...]
    probes: CellProbes
    metrics: pd.DataFrame
    revision: int = 0

    @property
    def ended(self) -> bool:
        return self.row["status"] in ENDED


class Following:
    """What is known of the study in ``folder``. :meth:`look` brings it up to date; nothing else reads new steps.

    ``instance`` tells one process' layer places and revisions from another's. Raises :class:`StudyError` where the
    folder holds no study.
    """

    def __init__(self, folder: Path) -> None:
        load_cells(folder)
        self.folder = folder
        self.instance = secrets.token_hex(8)
        self.layers = Layers()
        self.followed: dict[str, FollowedCell] = {}
        self.look()

    def look(self) -> bool:
        """Read what is new; whether anything is."""
        changed = False
        for folder in cell_folders(self.folder):
            known = self.followed.get(folder.name)
            seen = _files(folder)
            if known and known.seen == seen and known.ended:
                continue
            row = load_cell(folder)
            if row is None or (
                known and known.seen == seen and known.row["status"] == row["status"]
            ):
                continue
            self.followed[folder.name] = self._read(folder, row, seen, known)
            changed = True
        return changed

    def cells(self) -> pd.DataFrame:
        """The ``cells`` table as of the last look."""
        return cells_table([cell.row for cell in self.followed.values()])

    def quantities(self) -> list[Quantity]:
        """Everything that any cell measured, in the order of the tables."""
        return list(
            dict.fromkeys(q for cell in self.followed.values() for q in cell.probes.quantities)
        )

    def message(self, quantity: Quantity, had: Mapping[str, tuple[int, int]]) -> bytes:
        """The values of ``quantity`` in every cell, beyond the (revision, number of steps) that the reader has.

        See ``page/values.js`` for how it is read.
        """
        width = len(self.layers)
        blocks, parts = [], []
        for cell_id, cell in list(self.followed.items()):
            revision, start = had.get(cell_id, (cell.revision, 0))
            if revision != cell.revision:
                start = 0
            if start >= len(cell.probes.steps):
                continue
            values, missing = cell.probes.values(quantity, width)
            scale, packed = pack_values(values[start:], missing[start:])
            steps = cell.probes.steps[start:].tolist()
            blocks.append(
                {
                    "cell": cell_id,
                    "revision": cell.revision,
                    "start": start,
                    "steps": steps,
                    **scale,
                }
            )
            parts.append(packed)
        header = {"instance": self.instance, "quantity": quantity, "width": width, "blocks": blocks}
        return pack_message(header, parts)

    def _read(
        self, folder: Path, row: dict[str, Any], seen: tuple[Any, ...], known: FollowedCell | None
    ) -> FollowedCell:
        probes = CellProbes.read(folder, self.layers)
        metrics = load_cell_table(folder, "metrics").to_pandas()
        revision = known.revision if known else 0
        if known and not _extends(probes.steps.tolist(), known.probes.steps.tolist()):
            revision += 1
        return FollowedCell(folder, row, seen, probes, metrics, revision)


def _files(folder: Path) -> tuple[Any, ...]:
    """What changes about a cell's files whenever their content does."""
    found = []
    for name in (
        "record.json",
        *(f"{table}.{kind}" for table in SCHEMAS for kind in ("arrows", "parquet")),
    ):
        try:
            about = (folder / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        found.append((name, about.st_mtime_ns, about.st_size))
    return tuple(found)


def _extends(new: Sequence[int], old: Sequence[int]) -> bool:
    return list(new[: len(old)]) == list(old)
