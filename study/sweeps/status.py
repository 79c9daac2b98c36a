"""``study status``: the cells of a study by state, as text."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from study.errors import StudyError, printable
from study.store import STATUSES, cell_row, load_cells
from study.sweeps.agenda import WAITING, agendas, records
from study.vocabulary.statuses import note

COLUMNS = (
    *("status", "cell_id", "model", "optimizer", "lr", "scaling", "rank", "seed", "steps"),
    *("seconds", "note"),
)
NUMBERS = ("lr", "rank", "seed", "steps", "seconds")
STATES = (*STATUSES, WAITING)


def load_status(study_dir: Path) -> pd.DataFrame:
    """The ``cells`` table, followed by the cells that a sweep has not begun (``waiting``).

    Raises :class:`StudyError` if the folder holds no study and no live sweep is about to begin one.
    """
    planned = [record for agenda in agendas(study_dir) for record in records(study_dir, agenda)]
    waiting = pd.DataFrame([cell_row(record) for record in planned if record["status"] == WAITING])
    try:
        begun = load_cells(study_dir, with_unreadable=True)
    except StudyError:
        if waiting.empty:
            raise
        return waiting
    if waiting.empty:
        return begun
    # A cell that failed and is to be trained again is only waiting.
    others = begun[~begun["cell_id"].isin(waiting["cell_id"])]
    return pd.concat([others, waiting], ignore_index=True)


def counts(states: Iterable[str]) -> str:
    """``3 complete, 1 running``."""
    found = Counter(states)
    return ", ".join(f"{found[state]} {state}" for state in STATES if found[state])


def count_noun(number: int, noun: str) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def render(cells: pd.DataFrame) -> str:
    """The ``cells`` table as text: a line of counts, then a line per cell, by state.

    Not by rich, which takes 0.3 ms a cell.
    """
    rows = [COLUMNS, *_rows(cells)]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            " " * (width - cell_len(text)) + text
            if column in NUMBERS
            else text + " " * (width - cell_len(text))
            for column, width, text in zip(COLUMNS, widths, row, strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join([_title(cells), *lines])


def table(cells: pd.DataFrame, title: str) -> Table:
    """The ``cells`` table by state, as a rich table with a title."""
    drawn = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for column in COLUMNS:
        drawn.add_column(column, justify="right" if column in NUMBERS else "left")
    for row in _rows(cells):
        drawn.add_row(*map(Text, row))
    return drawn


def _title(cells: pd.DataFrame) -> str:
    return printable(f"{cells['study'].iloc[0]}: {counts(cells['status'])}")


def _rows(cells: pd.DataFrame) -> list[list[str]]:
    """The entries of :data:`COLUMNS` of every cell, by state."""
    by_state = cells["status"].map(STATES.index).argsort(kind="stable")
    return [
        [printable(text) for text in _texts(cell)]
        for cell in cells.iloc[by_state].to_dict("records")
    ]


def _texts(cell: Mapping[Any, Any]) -> list[str]:
    """A cell's entries of :data:`COLUMNS`."""
    if pd.isna(cell["rank"]):  # its record is unreadable
        blank = [""] * (len(COLUMNS) - 3)
        return [cell["status"], cell["cell_id"], *blank, note(cell)]
    done = 0 if pd.isna(cell["steps_done"]) else int(cell["steps_done"])
    p = "" if pd.isna(cell["exponent"]) else f" p={cell['exponent']:g}"
    return [
        *(cell["status"], cell["cell_id"], cell["model"], cell["optimizer"], f"{cell['lr']:g}"),
        # Whole numbers are floats in a column where an unreadable cell has none.
        *(f"{cell['scaling']}{p}", f"{cell['rank']:g}", str(int(cell["seed"]))),
        f"{done}/{int(cell['steps'])}",
        "" if pd.isna(cell["seconds"]) else f"{cell['seconds']:.1f}",
        note(cell),
    ]
