"""A study on disk that may still be training. Only what changed is read again.

A cell that has ended is read again only if its files change. A running cell is read again when its
streams have grown.
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
from study.vocabulary.statuses import ENDED

FileStates = tuple[tuple[str, int, int], ...]


@dataclass
class FollowedCell:
    """A cell at the last refresh.

    ``row``: its row of ``cells``. ``files``: the state of its files. ``revision`` increases when
    steps are replaced; it stays when steps are added.
    """

    folder: Path
    row: dict[str, Any]
    files: FileStates
    probes: CellProbes
    metrics: pd.DataFrame
    revision: int = 0

    @property
    def ended(self) -> bool:
        return self.row["status"] in ENDED


class FollowedStudy:
    """The study in ``folder``. Only :meth:`refresh` reads new steps.

    Layer indices and revisions are valid within one process; ``instance`` identifies it. Raises
    :class:`StudyError` if the folder holds no study.
    """

    def __init__(self, folder: Path) -> None:
        load_cells(folder)
        self.folder = folder
        self.instance = secrets.token_hex(8)
        self.layers = Layers()
        self.followed: dict[str, FollowedCell] = {}
        self.refresh()

    def refresh(self) -> bool:
        """Read what changed. Returns whether anything did."""
        changed = False
        for folder in cell_folders(self.folder):
            known = self.followed.get(folder.name)
            files = _file_states(folder)
            unchanged = known is not None and known.files == files
            if known and unchanged and known.ended:
                continue
            row = load_cell(folder)
            # The status can change without the files: a running cell whose process died.
            if row is None or (known and unchanged and known.row["status"] == row["status"]):
                continue
            self.followed[folder.name] = self._read(folder, row, files, known)
            changed = True
        return changed

    def cells(self) -> pd.DataFrame:
        """The ``cells`` table at the last refresh."""
        return cells_table([cell.row for cell in self.followed.values()])

    def quantities(self) -> list[Quantity]:
        """The quantities that any cell measured, in the order of the tables."""
        return list(
            dict.fromkeys(q for cell in self.followed.values() for q in cell.probes.quantities)
        )

    def values_message(self, quantity: Quantity, have: Mapping[str, tuple[int, int]]) -> bytes:
        """The values of ``quantity`` that the page lacks, in every cell.

        ``have``: by cell, the revision and the number of steps that the page has.
        ``page/values.js`` reads the message.
        """
        width = len(self.layers)
        blocks, parts = [], []
        for cell_id, cell in list(self.followed.items()):
            revision, start = have.get(cell_id, (cell.revision, 0))
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
        self, folder: Path, row: dict[str, Any], files: FileStates, known: FollowedCell | None
    ) -> FollowedCell:
        probes = CellProbes.read(folder, self.layers)
        metrics = load_cell_table(folder, "metrics").to_pandas()
        revision = known.revision if known else 0
        if known and not _extends(probes.steps.tolist(), known.probes.steps.tolist()):
            revision += 1
        return FollowedCell(folder, row, files, probes, metrics, revision)


def _file_states(folder: Path) -> FileStates:
    """Name, modification time and size of each of a cell's files."""
    tables = [f"{table}.{kind}" for table in SCHEMAS for kind in ("arrows", "parquet")]
    found = []
    for name in ("record.json", *tables):
        try:
            state = (folder / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        found.append((name, state.st_mtime_ns, state.st_size))
    return tuple(found)


def _extends(new: Sequence[int], old: Sequence[int]) -> bool:
    return list(new[: len(old)]) == list(old)
