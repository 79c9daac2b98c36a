"""The studies of a page, read by the store and analysed."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from study.analysis.derived import with_derived
from study.errors import StudyError, command_line, printable
from study.report.page import Pictures, answer_html
from study.store import StudyTables, cell_folders, load_cells, load_measured, read_cell
from study.store.tables import FIRST

FOLDED = ("loss_against_rank", "learning_rate_basins")
"""Figures below the answer, folded."""
TABLES = (".json", ".parquet", ".arrows")
"""The endings of files whose change may change the page."""


@dataclass(frozen=True)
class ShownStudy:
    """A study when it was read. ``prefix``: of the keys of its cells, of each study another.
    ``unreadable``: why, by cell. ``report``: its HTML, or why there is none."""

    name: str
    prefix: str
    tables: StudyTables
    unreadable: dict[str, str]
    report: str

    @classmethod
    def read(cls, folder: Path, name: str, prefix: str, drawn: Pictures) -> "ShownStudy":
        """Read and analyse a study. ``drawn``: the pictures of earlier reads."""
        of = partial(cls, name, prefix)
        nothing = StudyTables(pd.DataFrame(columns=list(FIRST)), pd.DataFrame(), pd.DataFrame())
        if not any(map(read_cell, cell_folders(folder))):
            return of(nothing, {}, "There is no cell yet.")
        every = load_cells(folder, with_unreadable=True)
        broken = every.loc[every["status"] == "unreadable"].set_index("cell_id")["error"]
        unreadable = {str(cell): printable(str(why), 1000) for cell, why in broken.items()}
        if len(broken) == len(every):
            return of(nothing, unreadable, "There is no cell that can be read.")
        tables = load_measured(folder)
        lost = set(every["cell_id"]) - set(tables.cells["cell_id"]) - set(unreadable)
        check = command_line("check", folder)
        unreadable |= dict.fromkeys(sorted(lost), f"a table is damaged: run {check}")
        ranks = tables.cells["rank"]
        if ranks[np.isfinite(ranks)].nunique() < 2:
            return of(tables, unreadable, "No answer yet: two ranks are needed.")
        try:
            tables = with_derived(tables)
        except StudyError as error:
            return of(tables, unreadable, escape(f"No exponents: {error}"))
        return of(tables, unreadable, answer_html(folder, tables, drawn, FOLDED))


def read_studies(folders: Sequence[Path], drawn: Pictures | None = None) -> list[ShownStudy]:
    prefixes = [f"{n}: " for n in range(len(folders))] if len(folders) > 1 else [""]
    each = zip(folders, names_of(folders), prefixes, strict=True)
    drawn = {} if drawn is None else drawn
    return [ShownStudy.read(*study, drawn) for study in each]


def names_of(folders: Sequence[Path]) -> list[str]:
    """The name of each folder; its path if another folder has the same name."""
    if twice := [folder for folder, count in Counter(folders).items() if count > 1]:
        raise StudyError(f"{twice[0]} is given twice: give each study once")
    names = [folder.resolve().name for folder in folders]
    return [
        str(folder) if names.count(name) > 1 else name
        for folder, name in zip(folders, names, strict=True)
    ]


def state_of(folders: Sequence[Path]) -> str:
    """A hash of the names, sizes and times (also of changes of rights) of the studies' files."""
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted([*folder.glob("*"), *folder.glob("cells/*/*")]):
            if path.suffix in TABLES and path.is_file():
                about = path.stat()
                found.update(f"{path} {about.st_size} {about.st_ctime_ns}\n".encode())
    return found.hexdigest()
