"""``study status``: the cells of a study by state, as text."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from rich.console import Console
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
    """The ``cells`` table as text: a line of counts, then a line per cell, by state."""
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table(cells, f"{cells['study'].iloc[0]}: {counts(cells['status'])}"))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def table(cells: pd.DataFrame, title: str) -> Table:
    """The ``cells`` table by state, as a rich table with a title."""
    drawn = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for column in COLUMNS:
        drawn.add_column(column, justify="right" if column in NUMBERS else "left")
    by_state = cells["status"].map(STATES.index)
    for _, cell in cells.assign(state=by_state).sort_values("state", kind="stable").iterrows():
        drawn.add_row(*(Text(printable(text)) for text in _texts(cell)))
    return drawn


def _texts(cell: pd.Series) -> list[str]:
    """A cell's entries of :data:`COLUMNS`."""
    if pd.isna(cell["rank"]):  # its record is unreadable
        blank = [""] * (len(COLUMNS) - 3)
        return [cell["status"], cell["cell_id"], *blank, note(cell.to_dict())]
    done = 0 if pd.isna(cell["steps_done"]) else int(cell["steps_done"])
    p = "" if pd.isna(cell["exponent"]) else f" p={cell['exponent']:g}"
    return [
        *(cell["status"], cell["cell_id"], cell["model"], cell["optimizer"], f"{cell['lr']:g}"),
        *(f"{cell['scaling']}{p}", f"{cell['rank']:g}", str(cell["seed"])),
        f"{done}/{cell['steps']}",
        "" if pd.isna(cell["seconds"]) else f"{cell['seconds']:.1f}",
        note(cell.to_dict()),
    ]
