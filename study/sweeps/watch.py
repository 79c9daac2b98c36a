"""``study status --watch``: follow what trains in a study from any terminal, until nothing is left to train.

All that it knows it reads from the study's folder, so it does not matter which processes train, or how many.
"""

import sys
import time
from datetime import timedelta
from pathlib import Path

import pandas as pd
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar

from study.sweeps.agenda import WAITING, Progress, agendas, progress
from study.sweeps.status import counts, load_status, render, table

_LOOK_EVERY = 1.0  # seconds
_LINE_EVERY = (
    10.0  # seconds between lines where stdout is no terminal, unless a cell begins or ends
)
_ROWS = 20  # of the table on a terminal: one that is longer than the screen can't be followed
_ORDER = ("running", "failed", "diverged", "interrupted", WAITING, "complete")


def watch(study_dir: Path, console: Console | None = None) -> None:
    """Show a study on ``console`` until no cell is running or waiting, then its table and the command that comes next.

    A live table on a terminal, lines elsewhere. Raises :class:`StudyError` where the folder holds no study.
    """
    console = console or Console(file=sys.stdout, highlight=False)
    follow = _live if console.is_terminal else _lines
    cells = follow(study_dir, console)
    print(render(cells), file=console.file)
    print(f"next: study analyze {study_dir}", file=console.file, flush=True)


def _live(study_dir: Path, console: Console) -> pd.DataFrame:
    with Live(console=console, auto_refresh=False, transient=True) as screen:
        while _is_going(cells := load_status(study_dir)):
            sweep = _sweep(study_dir)
            first = cells.assign(place=cells["status"].map(_ORDER.index)).sort_values(
                "place", kind="stable"
            )
            shown = table(first.head(_ROWS), _headline(cells, sweep))
            bar = ProgressBar(total=1.0, completed=sweep.work if sweep else 0.0, width=60)
            screen.update(
                Group(Padding(bar), shown) if sweep else shown, refresh=True
            )  # a bar alone ends no line
            time.sleep(_LOOK_EVERY)
    return cells


def _lines(study_dir: Path, console: Console) -> pd.DataFrame:
    last, printed = "", 0.0
    while _is_going(cells := load_status(study_dir)):
        states = counts(cells["status"])
        if states != last or time.monotonic() - printed > _LINE_EVERY:
            last, printed = states, time.monotonic()
            print(
                f"{time.strftime('%H:%M:%S')}  {_headline(cells, _sweep(study_dir))}",
                file=console.file,
                flush=True,
            )
        time.sleep(_LOOK_EVERY)
    return cells


def _is_going(cells: pd.DataFrame) -> bool:
    return bool(cells["status"].isin(["running", WAITING]).any())


def _sweep(study_dir: Path) -> Progress | None:
    """How far the sweep is that will end last; None where a cell is trained outside any."""
    found = [progress(study_dir, agenda) for agenda in agendas(study_dir)]
    return max(found, key=lambda sweep: sweep.seconds_left or 0.0, default=None)


def _headline(cells: pd.DataFrame, sweep: Progress | None) -> str:
    """``quick: 3 complete, 1 running, 6 waiting  pack 1/2 done  34 %  0:02:10 left``, and where running cells are."""
    running = cells[cells["status"] == "running"]
    at = ", ".join(
        f"rank {cell['rank']:g} {cell['scaling']} at step {0 if pd.isna(cell['steps_done']) else cell['steps_done']:g}"
        f"/{cell['steps']}"
        for _, cell in running.head(4).iterrows()
    )
    parts = [f"{cells['study'].iloc[0]}: {counts(cells['status'])}", at]
    if sweep:
        left = (
            ""
            if sweep.seconds_left is None
            else f"{timedelta(seconds=round(sweep.seconds_left))} left"
        )
        parts += [f"{sweep.packs_done} of {sweep.packs} packs done", f"{sweep.work:.0%}", left]
    return "  ".join(part for part in parts if part)
