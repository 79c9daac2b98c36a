"""What running sweeps have still to train, and what terminals show of it.

While a sweep lives, the file ``sweep-TIME-PID.json`` in its study's folder lists its cells. The
sweep holds a lock on that file, so a file whose lock is free was left by a killed sweep. How far a
cell is, is read from its record. The time left is the work left, in the FLOPs of the plan, at the
rate of the sweep so far. It may be off by half.
"""

import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd
from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.progress_bar import ProgressBar
from rich.text import Text

from study.errors import StudyError, printable
from study.store import STATUSES, Lock, cell_row, is_held, load_cells, read_cell
from study.store.files import make_folder, remove, storing
from study.sweeps import signals
from study.vocabulary.statuses import DONE, ENDED, note

WAITING = "waiting"
"""The state of a cell that a live sweep has not begun."""
STATES = (*STATUSES, WAITING)
COLUMNS = (
    "status",
    "cell_id",
    "model",
    "optimizer",
    "lr",
    "scaling",
    "rank",
    "seed",
    "steps",
    "seconds",
    "note",
)
NUMBERS = ("lr", "rank", "seed", "steps", "seconds")
LINE_EVERY = 10.0
"""Seconds between lines of log where there is no terminal."""
READ_EVERY = 5.0
"""Seconds between two readings of a sweep's progress by its own processes."""
MOST_ROWS = 20
"""Rows of a live table. A table longer than the screen can't be followed."""


@dataclass(frozen=True)
class Planned:
    """A cell that a sweep is to train.

    ``record``: as it is before the cell begins. ``flops``: of all of its steps. ``first_step``:
    where it continues; 0 without a checkpoint.
    """

    record: dict[str, Any]
    flops: float
    first_step: int = 0

    @property
    def id(self) -> str:
        """The cell's id."""
        return str(self.record["cell_id"])

    def done(self, record: Mapping[str, Any]) -> float:
        """The FLOPs that the sweep has spent on the cell, by its record of now."""
        steps = self.record["config"]["train"]["steps"] + 1
        done = int(record.get("steps_done", -1)) + 1 - self.first_step
        return self.flops * min(1.0, max(0, done) / steps)

    @property
    def total(self) -> float:
        """The FLOPs that the sweep spends on the cell in all."""
        return self.flops * (1 - self.first_step / (self.record["config"]["train"]["steps"] + 1))


@dataclass(frozen=True)
class SweepProgress:
    """How far a sweep is.

    ``states``: cells by state. ``work``: the share of the FLOPs that is done, 0 to 1.
    ``seconds_left``: None before the first step.
    """

    states: Counter[str]
    work: float
    seconds_left: float | None

    @property
    def left(self) -> str:
        """``0:03:10 left``; empty if that is not known, or nothing is left."""
        if not self.seconds_left:
            return ""
        return f"{timedelta(seconds=round(self.seconds_left))} left"


class LiveSweep:
    """The cells of a live sweep of one study. ``began``: when it did, UTC."""

    def __init__(self, study_dir: Path, began: str, cells: Sequence[Planned]) -> None:
        self.study_dir, self.began, self.cells = study_dir, began, cells
        self._done: dict[str, dict[str, Any]] = {}

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The sweep in a file; None if it has just ended, or if the file is damaged."""
        try:
            content = json.loads(path.read_text())
            cells = [Planned(**cell) for cell in content["cells"]]
            known = all(cell.id and cell.total >= 0 for cell in cells)
            began = datetime.fromisoformat(content["began"])
        except (OSError, ValueError, KeyError, TypeError, ArithmeticError):
            return None
        return cls(path.parent, content["began"], cells) if known and began.tzinfo else None

    def records(self) -> list[dict[str, Any]]:
        """The record of every cell as of now; ``waiting`` if the cell has not begun.

        A cell that is done is read once.
        """
        found = []
        for cell in self.cells:
            record = self._done.get(cell.id) or read_cell(self.study_dir / "cells" / cell.id)
            if record is not None and record["status"] in DONE:
                self._done[cell.id] = record
            elif record is None or (record["status"] != "running" and _began(record) < self.began):
                record = cell.record | {"status": WAITING}
            found.append(record)
        return found

    def progress(self) -> SweepProgress:
        """How far it is. Packs that run at the same time share the work."""
        records = self.records()
        done = left = 0.0
        for cell, record in zip(self.cells, records, strict=True):
            spent = cell.done(record) if record["status"] != WAITING else 0.0
            done += spent
            left += 0.0 if record["status"] in ENDED else cell.total - spent
        elapsed = time.time() - datetime.fromisoformat(self.began).timestamp()
        seconds = elapsed * left / done if done else None
        work = done / (done + left) if done else 0.0
        return SweepProgress(Counter(record["status"] for record in records), work, seconds)


def _began(record: Mapping[str, Any]) -> str:
    """When a cell's training began or continued last, UTC; empty if its record does not say."""
    resumed = record.get("resumed")
    last = resumed[-1] if isinstance(resumed, list) and resumed else {}
    return max(str(record.get("started", "")), str(last.get("at", "")))


@contextlib.contextmanager
def posted(study_dir: Path, cells: Sequence[Planned]) -> Iterator[Path]:
    """Inside, other processes see that ``cells`` are to be trained. Yields the sweep's file.

    First deletes the files of killed sweeps. Raises :class:`~study.store.files.StorageError` if
    the folder can't be written.
    """
    make_folder(study_dir)
    for left in study_dir.glob("sweep-*"):
        if not is_held(left.with_suffix(".json")):
            remove(left)
    now = datetime.now(UTC)
    path = study_dir / f"sweep-{now:%Y%m%dT%H%M%S%f}-{os.getpid()}.json"
    # To the second, like the start of a cell: a cell that began earlier is another sweep's.
    content = {
        "began": now.isoformat(timespec="seconds"),
        "cells": [asdict(cell) for cell in cells],
    }
    held = Lock(path)
    with storing(path):
        held.acquire()
        path.write_text(json.dumps(content))
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):  # a full or lost disk
            remove(path)
        held.release()


def stop_file(sweep: Path) -> Path:
    """While this file exists, every process of the sweep, on any machine, stops after its step.

    A signal would reach only processes of the sweep's own machine, and which of them train is known
    to the launcher alone.
    """
    return sweep.with_suffix(".stop")


def live_sweeps(study_dir: Path) -> list[LiveSweep]:
    """The live sweeps of a study, oldest first."""
    held = (path for path in sorted(study_dir.glob("sweep-*.json")) if is_held(path))
    return [sweep for path in held if (sweep := LiveSweep.read(path))]


def waiting_cells(study_dir: Path) -> list[dict[str, Any]]:
    """The records of the cells that live sweeps of a study have not begun."""
    found = [record for sweep in live_sweeps(study_dir) for record in sweep.records()]
    return [record for record in found if record["status"] == WAITING]


# `study status`: the cells by state, as text.


def load_status(study_dir: Path) -> pd.DataFrame:
    """The ``cells`` table, followed by the cells that a sweep has not begun (``waiting``).

    Raises :class:`StudyError` if the folder holds no study and no live sweep is about to begin one.
    """
    ahead = pd.DataFrame([cell_row(record) for record in waiting_cells(study_dir)])
    try:
        begun = load_cells(study_dir, with_unreadable=True)
    except StudyError:
        if ahead.empty:
            raise
        return ahead
    if ahead.empty:
        return begun
    # A cell that failed and is to be trained again is only waiting.
    others = begun[~begun["cell_id"].isin(ahead["cell_id"])]
    return pd.concat([others, ahead], ignore_index=True)


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
    by_state = cells.iloc[cells["status"].map(STATES.index).argsort(kind="stable")]
    found = [[printable(text) for text in _texts(cell)] for cell in by_state.to_dict("records")]
    rows = [list(COLUMNS), *found]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = [_summary(cells)]
    for row in rows:
        line = []
        for column, width, text in zip(COLUMNS, widths, row, strict=True):
            blank = " " * (width - cell_len(text))
            line.append(blank + text if column in NUMBERS else text + blank)
        lines.append("  ".join(line).rstrip())
    return "\n".join(lines)


def _summary(cells: pd.DataFrame) -> str:
    return printable(f"{cells['study'].iloc[0]}: {counts(cells['status'])}")


def _texts(cell: Mapping[Any, Any]) -> list[str]:
    """A cell's entries of :data:`COLUMNS`."""
    if pd.isna(cell["rank"]):  # its record is unreadable
        blank = [""] * (len(COLUMNS) - 3)
        return [cell["status"], cell["cell_id"], *blank, note(cell)]
    done = 0 if pd.isna(cell["steps_done"]) else int(cell["steps_done"])
    p = "" if pd.isna(cell["exponent"]) else f" p={cell['exponent']:g}"
    return [
        cell["status"],
        cell["cell_id"],
        cell["model"],
        cell["optimizer"],
        f"{cell['lr']:g}",
        f"{cell['scaling']}{p}",
        f"{cell['rank']:g}",
        str(int(cell["seed"])),
        f"{done}/{int(cell['steps'])}",
        "" if pd.isna(cell["seconds"]) else f"{cell['seconds']:.1f}",
        note(cell),
    ]


# `study status --watch`: the same from any terminal, until no cell is left to train.


def watch(study_dir: Path, console: Console | None = None) -> None:
    """Show a study until no cell is running or waiting, then its table and the next command.

    On a terminal the table is live; elsewhere lines are printed. Raises :class:`StudyError` if the
    folder holds no study.
    """
    console = console or Console(file=sys.stdout, highlight=False)
    with Live(console=console, auto_refresh=False, transient=True) as screen:
        printed = -LINE_EVERY
        states = ""
        while (cells := load_status(study_dir))["status"].isin(["running", WAITING]).any():
            sweeps = [sweep.progress() for sweep in live_sweeps(study_dir)]
            last = max(sweeps, key=lambda each: each.seconds_left or 0.0, default=None)
            line = _headline(cells, last)
            if console.is_terminal:
                order = cells["status"].isin(["complete", WAITING]).argsort(kind="stable")
                shown = Text(render(cells.iloc[order].head(MOST_ROWS)).partition("\n")[2])
                # The padding ends the bar's line: a bar alone does not.
                bar = Padding(ProgressBar(1.0, last.work if last else 0.0, width=60))
                screen.update(Group(bar, Text(line), shown), refresh=True)
            elif counts(cells["status"]) != states or time.monotonic() - printed > LINE_EVERY:
                states, printed = counts(cells["status"]), time.monotonic()
                print(f"{time.strftime('%H:%M:%S')}  {line}", file=console.file, flush=True)
            time.sleep(max(1.0, len(cells) / 1000))  # a reading takes 0.7 ms a cell
    print(render(cells), file=console.file)
    print(f"next: study report {study_dir}", file=console.file, flush=True)


def _headline(cells: pd.DataFrame, sweep: SweepProgress | None) -> str:
    """``quick: 3 complete, 1 running  rank 8 lora at step 4/12  34%  0:02:10 left``."""
    running = cells[cells["status"] == "running"].head(4).fillna({"steps_done": 0})
    at = [
        f"rank {cell['rank']:g} {cell['scaling']} at step {cell['steps_done']:g}/{cell['steps']}"
        for cell in running.to_dict("records")
    ]
    parts = [_summary(cells), ", ".join(at)]
    if sweep:
        parts += [f"{sweep.work:.0%}", sweep.left]
    return "  ".join(part for part in parts if part)


# What `study train` shows.


class Display:
    """Progress of one pack: cells done in the whole sweep, the step, the loss and the time left.

    A context manager: a bar on a terminal, lines of log elsewhere. ``labels``: a name for each of
    the pack's cells, by cell id. ``steps``: the last step. ``posted``: the file of its sweep.
    """

    def __init__(
        self, study_dir: Path, labels: Mapping[str, str], steps: int, posted: Path | None = None
    ) -> None:
        self.study_dir, self.labels, self.steps = study_dir, labels, steps
        self.sweep = LiveSweep.read(posted) if posted else None
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("[bold]{task.description}[/]"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[line]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(study_dir.name, total=1.0, line="loading")
        self.logged_at = time.monotonic()
        self.finished = 0
        self._read_progress()

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def start(self, fold: Sequence[str], tokens: float = 0.0) -> None:
        """The cells of ``fold``, given by id, begin, or continue after ``tokens`` in all."""
        self.fold, self.tokens_before = fold, tokens
        self.fold_began = time.monotonic()

    def advance(self, metrics: Sequence[Mapping[str, float]]) -> None:
        """One step of the fold is done. ``metrics``: a row for each cell that has not diverged."""
        if not metrics:
            return
        if time.monotonic() - self.read_at > READ_EVERY:
            self._read_progress()
        seconds = max(1e-9, time.monotonic() - self.fold_began)
        tokens = (sum(row["tokens"] for row in metrics) - self.tokens_before) / seconds
        loss = next((f"loss {row['loss']:.4f}  " for row in metrics if "loss" in row), "")
        step = f"step {metrics[0]['step']:.0f}/{self.steps}  {loss}{tokens:.0f} tokens/s"
        line = self._line(self.labels[self.fold[0]], step)
        self.bar.update(self.task, completed=self.ahead.work if self.ahead else 0.0, line=line)
        if self.bar.disable and time.monotonic() - self.logged_at > LINE_EVERY:
            self.say(line)

    def finish(self, statuses: Mapping[str, str]) -> None:
        """The fold's cells have ended. ``statuses``: by cell id."""
        self._read_progress()
        for cell, status in statuses.items():
            self.finished += 1
            if self.bar.disable or status != "complete":
                ended = f"{status} in {time.monotonic() - self.fold_began:.1f} s"
                self.say(self._line(self.labels[cell], ended))

    def say(self, line: str) -> None:
        """Print a line of log on stderr; above the bar on a terminal."""
        self.logged_at = time.monotonic()
        if self.bar.disable:
            signals.say(f"[{self.study_dir.name}] {line}")
            return
        with contextlib.suppress(OSError):  # the terminal is gone
            self.console.print(f"[{self.study_dir.name}] {line}", markup=False, highlight=False)

    def _read_progress(self) -> None:
        self.read_at = time.monotonic()
        self.ahead = self.sweep.progress() if self.sweep else None

    def _line(self, *parts: str) -> str:
        """``9 of 12 cells done  adamw rslora rank 8 seed 0  step 3/100  0:03:10 left``."""
        done, cells = self.finished, len(self.labels)
        left = ""
        if self.ahead:
            done = sum(self.ahead.states[state] for state in ENDED)
            cells, left = self.ahead.states.total(), self.ahead.left
        said = (f"{done} of {count_noun(cells, 'cell')} done", *parts, left)
        return "  ".join(part for part in said if part)
