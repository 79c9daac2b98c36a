"""``study status --watch``: follow a study from any terminal until no cell is left to train.

Everything is read from the study's folder, so any number of processes may train.
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
from study.sweeps.progress import MEASURING
from study.sweeps.status import STATES, count_noun, counts, load_status, render, table

_READ_EVERY = 1.0
"""The least seconds between readings of the study's folder."""
_LINE_EVERY = 10.0
"""Seconds between lines if stdout is not a terminal. A cell that begins or ends adds a line."""
_ROWS = 20
"""Rows of the live table. A table longer than the screen can't be followed."""
_FIRST = ("running", "failed", "unreadable", "diverged", "stuck", "interrupted", WAITING)
_ORDER = (*_FIRST, *(state for state in STATES if state not in _FIRST))


def watch(study_dir: Path, console: Console | None = None) -> None:
    """Show a study until no cell is running or waiting, then its table and the next command.

    On a terminal the table is live; elsewhere lines are printed. Raises :class:`StudyError` if the
    folder holds no study.
    """
    console = console or Console(file=sys.stdout, highlight=False)
    follow = _live if console.is_terminal else _lines
    cells = follow(study_dir, console)
    print(render(cells), file=console.file)
    print(f"next: study report {study_dir}", file=console.file, flush=True)


def _live(study_dir: Path, console: Console) -> pd.DataFrame:
    with Live(console=console, auto_refresh=False, transient=True) as screen:
        while _has_work(cells := load_status(study_dir)):
            sweep = _last_sweep(study_dir)
            order = cells["status"].map(_ORDER.index)
            first = cells.assign(order=order).sort_values("order", kind="stable").head(_ROWS)
            shown = table(first, _headline(cells, sweep))
            bar = ProgressBar(total=1.0, completed=sweep.work if sweep else 0.0, width=60)
            # The padding ends the bar's line: a bar alone does not.
            screen.update(Group(Padding(bar), shown) if sweep else shown, refresh=True)
            time.sleep(_pause(cells))
    return cells


def _lines(study_dir: Path, console: Console) -> pd.DataFrame:
    last, printed = "", 0.0
    while _has_work(cells := load_status(study_dir)):
        states = counts(cells["status"])
        if states != last or time.monotonic() - printed > _LINE_EVERY:
            last, printed = states, time.monotonic()
            line = f"{time.strftime('%H:%M:%S')}  {_headline(cells, _last_sweep(study_dir))}"
            print(line, file=console.file, flush=True)
        time.sleep(_pause(cells))
    return cells


def _pause(cells: pd.DataFrame) -> float:
    """Seconds to the next reading. One takes 0.7 ms a cell, so it uses half a core at most."""
    return max(_READ_EVERY, len(cells) / 1000)


def _has_work(cells: pd.DataFrame) -> bool:
    return bool(cells["status"].isin(["running", WAITING]).any())


def _last_sweep(study_dir: Path) -> Progress | None:
    """The progress of the live sweep that will end last; None if there is no live sweep."""
    found = [progress(study_dir, agenda) for agenda in agendas(study_dir)]
    return max(found, key=lambda sweep: sweep.seconds_left or 0.0, default=None)


def _headline(cells: pd.DataFrame, sweep: Progress | None) -> str:
    """``quick: 3 complete, 1 running  rank 8 lora at step 4/12  1 of 2 packs done  34%  0:02:10
    left``.
    """
    running = cells[cells["status"] == "running"]
    parts = [f"{cells['study'].iloc[0]}: {counts(cells['status'])}"]
    parts.append(", ".join(_where(cell) for _, cell in running.head(4).iterrows()))
    if sweep:
        parts += [f"{sweep.packs_done} of {count_noun(sweep.packs, 'pack')} done"]
        parts += [f"{sweep.work:.0%}"]
        left = sweep.seconds_left
        parts.append(MEASURING if left is None else f"{timedelta(seconds=round(left))} left")
    return "  ".join(part for part in parts if part)


def _where(cell: pd.Series) -> str:
    done = 0 if pd.isna(cell["steps_done"]) else cell["steps_done"]
    return f"rank {cell['rank']:g} {cell['scaling']} at step {done:g}/{cell['steps']}"
