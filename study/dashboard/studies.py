"""The studies of a page, as the store reads them, and what the analysis finds in each."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from study.analysis import analyze, headline
from study.errors import StudyError, printable
from study.store import load_cells, load_measured
from study.store.tables import FIRST
from study.vocabulary.statuses import ENDED

TABLES = (".json", ".parquet", ".arrows")
"""The endings of files whose change may change the page."""


@dataclass(frozen=True)
class Study:
    """A study at the moment when it was read, and what it shows so far.

    - ``cells``, ``metrics``, ``probes``: see :class:`study.store.StudyTables`;
    - ``unreadable``: why, by the id of each cell that can't be read;
    - ``rows``: those of :func:`study.analysis.headline`. ``note``: why there are none;
    - ``stable``: that of :class:`study.analysis.Analysis`.
    """

    folder: Path
    name: str
    cells: pd.DataFrame
    metrics: pd.DataFrame = field(default_factory=pd.DataFrame)
    probes: pd.DataFrame = field(default_factory=pd.DataFrame)
    unreadable: dict[str, str] = field(default_factory=dict)
    rows: pd.DataFrame = field(default_factory=pd.DataFrame)
    note: str = ""
    stable: pd.DataFrame = field(default_factory=pd.DataFrame)

    @classmethod
    def read(cls, folder: Path, name: str) -> "Study":
        """Read and analyse a study. Raises :class:`StudyError` if the folder holds none."""
        every = load_cells(folder, with_unreadable=True)
        broken = every.loc[every["status"] == "unreadable"].set_index("cell_id")["error"]
        unreadable = {str(cell): printable(str(why), 1000) for cell, why in broken.items()}
        if len(broken) == len(every):
            note = "No exponents: there is no cell that can be read."
            cells = pd.DataFrame(columns=list(FIRST))
            return cls(folder, name, cells, unreadable=unreadable, note=note)
        tables = load_measured(folder)
        lost = set(every["cell_id"]) - set(tables.cells["cell_id"]) - set(unreadable)
        unreadable |= dict.fromkeys(sorted(lost), f"a table is damaged: run study check {folder}")
        read = tables.cells, tables.metrics, tables.probes
        return cls(folder, name, *read, unreadable, **_found(*read))


def _found(cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame) -> dict[str, Any]:
    """What the analysis finds, as fields of :class:`Study`."""
    if cells.loc[np.isfinite(cells["rank"]), "rank"].nunique() < 2:
        return {"note": "No exponents yet: two ranks are needed."}
    try:
        found = analyze(cells, metrics, probes)
    except StudyError as error:
        return {"note": f"No exponents: {error}"}
    if found.exponents.empty:
        return {"note": "No exponents yet: no quantity has been measured at two ranks."}
    return {"rows": headline(found.exponents), "stable": found.stable}


def read_studies(folders: Sequence[Path]) -> list[Study]:
    """The studies in ``folders``. Raises :class:`StudyError` if a folder holds none, or is given
    twice."""
    twice = [str(folder) for folder, count in Counter(folders).items() if count > 1]
    if twice:
        raise StudyError(f"{twice[0]} is given twice: give each study once")
    return [
        Study.read(folder, name) for folder, name in zip(folders, names_of(folders), strict=True)
    ]


def names_of(folders: Sequence[Path]) -> list[str]:
    """The name of each folder; its path if another folder has the same name."""
    names = [folder.resolve().name for folder in folders]
    return [
        str(folder) if names.count(name) > 1 else name
        for folder, name in zip(folders, names, strict=True)
    ]


def state_of(folders: Sequence[Path]) -> str:
    """A hash of the names, sizes and times of the studies' files: another one if any has changed.

    A change of rights counts, since it may make a file readable.
    """
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted([*folder.glob("*"), *folder.glob("cells/*/*")]):
            if path.suffix in TABLES and path.is_file():
                about = path.stat()
                found.update(f"{path} {about.st_size} {about.st_ctime_ns}\n".encode())
    return found.hexdigest()


def is_running(study: Study) -> bool:
    """Whether a cell has not ended."""
    return not set(study.cells["status"]) <= set(ENDED)
