"""``study status``: the cells of a study by state, as text."""

import pandas as pd
from rich.console import Console
from rich.table import Table

from study.store import STATUSES

COLUMNS = ("status", "cell_id", "model", "optimizer", "lr", "scaling", "rank", "seed", "steps", "seconds", "note")


def render(cells: pd.DataFrame) -> str:
    """The ``cells`` table by state, one line a cell, under a line that counts them."""
    counts = [f"{n} {status}" for status in STATUSES if (n := int((cells["status"] == status).sum()))]
    table = Table(
        title=f"{cells['study'].iloc[0]}: {', '.join(counts)}", title_justify="left", box=None, pad_edge=False
    )
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in ("lr", "rank", "seed", "steps", "seconds") else "left")
    by_state = cells["status"].map(STATUSES.index)
    for _, cell in cells.assign(state=by_state).sort_values("state", kind="stable").iterrows():
        done = 0 if pd.isna(cell["steps_done"]) else int(cell["steps_done"])
        table.add_row(
            cell["status"],
            cell["cell_id"],
            cell["model"],
            cell["optimizer"],
            f"{cell['lr']:g}",
            cell["scaling"] if pd.isna(cell["exponent"]) else f"{cell['scaling']} p={cell['exponent']:g}",
            f"{cell['rank']:g}",
            str(cell["seed"]),
            f"{done}/{cell['steps']}",
            "" if pd.isna(cell["seconds"]) else f"{cell['seconds']:.1f}",
            _note(cell),
        )
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _note(cell: pd.Series) -> str:
    if cell["status"] == "diverged":
        return f"not finite at step {cell['diverged_step']:.0f}"
    return cell["error"] or "" if isinstance(cell["error"], str) else ""
