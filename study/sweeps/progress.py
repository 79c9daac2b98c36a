"""The progress of running sweeps, and its display on terminals.

While a sweep runs, the file ``sweep-TIME-PID.json`` in its study's folder lists its cells. The
sweep holds a lock on that file. If the lock is free, the sweep was killed. The progress of a cell
is in its record. The time left assumes the rate of the sweep so far, and may be off by half.
"""

import contextlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Column, Table
from rich.text import Text

from study.errors import StudyError, command_line, count_noun, printable
from study.store import Lock, cell_row, is_held, load_cells, read_cell
from study.store.files import make_folder, remove, storing
from study.sweeps import signals
from study.vocabulary.statuses import DONE, ENDED, STATUSES, note

WAITING = "waiting"
"""The state of a cell that a live sweep has not begun."""
STATES = (*STATUSES, WAITING)
NUMBERS = ("lr", "rank", "seed", "steps", "sec")
WIDE = 10_000
"""Columns of text without a terminal: a line per cell for other programs."""
LINE_EVERY = 10.0
"""Seconds between lines of log where there is no terminal."""
FEW = 5
"""Steps of a cell before there is a time left: the first ones measure more, and compile."""
READ_EVERY = 5.0
"""Seconds between two readings of a sweep's progress by its own processes."""


@dataclass(frozen=True)
class Outcome:
    """How one pass over a pack ended: lines for cells that failed, by folder; the signal that ended
    it; the line of a user's mistake, if no cell can be trained."""

    failures: Mapping[Path, str] = field(default_factory=dict)
    signum: int | None = None
    mistake: str | None = None


class SweepProgress(NamedTuple):
    """Cells by state, the share of the steps done, and seconds left (None early)."""

    states: Counter[str]
    work: float
    seconds_left: float | None

    @property
    def left(self) -> str:
        """``0:03:10 left``; empty if that is not known, or nothing is left."""
        seconds = round(self.seconds_left or 0)
        return f"{timedelta(seconds=seconds)} left" if seconds else ""


class LiveSweep:
    """A live sweep of one study. ``cells``: records; ``steps_done`` if they continue."""

    def __init__(self, study_dir: Path, began: str, cells: Sequence[dict[str, Any]]) -> None:
        self.study_dir, self.began, self.cells = study_dir, began, cells
        self._done: dict[str, dict[str, Any]] = {}

    @classmethod
    def read(cls, path: Path) -> Self | None:
        try:
            return cls(path.parent, **json.loads(path.read_text()))
        except (OSError, ValueError):
            return None

    def records(self) -> list[dict[str, Any]]:
        found = []
        for cell in self.cells:
            cell_id = cell["cell_id"]
            record = self._done.get(cell_id) or read_cell(self.study_dir / "cells" / cell_id)
            found.append(record or cell | {"status": WAITING})
            if record and record["status"] in DONE:
                self._done[cell_id] = record
        return found

    def first_seed_done(self) -> int | None:
        """The lowest seed, if all of its cells are done and cells of other seeds are not."""
        records = self.records()
        left = {each["config"]["seed"] for each in records if each["status"] not in DONE}
        first = min(each["config"]["seed"] for each in records)
        return first if left and first not in left else None

    def progress(self) -> SweepProgress:
        """How far it is, if all steps take the same time. A base is loaded before cells begin."""
        records, began = self.records(), list[str]()
        done = left = 0
        is_known = False
        for cell, record in zip(self.cells, records, strict=True):
            steps, has_ended = int(record.get("steps_done", -1)), record["status"] in ENDED
            own = steps - cell.get("steps_done", -1)
            done += own
            left += 0 if has_ended else cell["config"]["train"]["steps"] - steps
            is_known |= own > 0 and (own >= FEW or has_ended)
            if own > 0:
                at = (record.get("resumed") or [{"at": record["started"]}])[-1]["at"]
                began.append(max(self.began, at))
        elapsed = time.time() - datetime.fromisoformat(min(began, default=self.began)).timestamp()
        seconds = elapsed * left / done if is_known else None
        work = done / (done + left) if done else 0.0
        return SweepProgress(Counter(record["status"] for record in records), work, seconds)


@contextlib.contextmanager
def posted(cells: Mapping[Path, Sequence[dict[str, Any]]]) -> Iterator[dict[Path, Path]]:
    """Context manager: others see that ``cells``, records by study, are to be trained. Yields the
    sweep's file in each."""
    now = datetime.now(UTC)
    name = f"sweep-{now:%Y%m%dT%H%M%S%f}-{os.getpid()}.json"
    files = {study_dir: study_dir / name for study_dir in cells}
    with contextlib.ExitStack() as stack:
        for study_dir, path in files.items():
            make_folder(study_dir)
            stack.enter_context(Lock(path))
            with storing(path):
                path.write_text(json.dumps({"began": now.isoformat(), "cells": cells[study_dir]}))
        try:
            yield files
        finally:
            for path in files.values():
                with contextlib.suppress(OSError):  # a full or lost disk
                    remove(path)


def remove_killed_sweeps(study_dir: Path) -> None:
    """Delete the files that killed sweeps left in a study."""
    for left in study_dir.glob("sweep-*"):
        if not is_held(left.with_suffix(".json")):
            remove(left)


def stop_file(sweep: Path) -> Path:
    """While this file exists, every process of the sweep, on any machine, stops after its step."""
    return sweep.with_suffix(".stop")


def must_stop(posted: Path | None) -> bool:
    """Whether this process must stop after its step, by a signal or the file of its sweep."""
    return signals.asked() is not None or (posted is not None and stop_file(posted).exists())


def live_sweeps(study_dir: Path) -> list[LiveSweep]:
    held = (path for path in sorted(study_dir.glob("sweep-*.json")) if is_held(path))
    return [sweep for path in held if (sweep := LiveSweep.read(path))]


def waiting_cells(study_dir: Path) -> list[dict[str, Any]]:
    found = [record for sweep in live_sweeps(study_dir) for record in sweep.records()]
    return [record for record in found if record["status"] == WAITING]


# `study status` and `study list`: cells and studies as text.


def list_studies(results_dir: Path) -> pd.DataFrame:
    """A row per study in ``results_dir``: its folder, models, cells, and cells by state."""
    found = []
    for folder in sorted(filter(Path.is_dir, results_dir.glob("*"))):
        with contextlib.suppress(StudyError):
            cells = load_status(folder)
            models = ", ".join(sorted(set(cells["model"].dropna().astype(str))))
            states = {state: int((cells["status"] == state).sum()) for state in STATES}
            found.append({"study": str(folder), "model": models, "cells": len(cells), **states})
    if not found:
        raise StudyError(f"no study in {results_dir}: run study train, or give another folder")
    return pd.DataFrame(found)


def render_studies(studies: pd.DataFrame) -> str:
    rows = studies.to_dict("records")
    states = [", ".join(f"{row[name]} {name}" for name in STATES if row[name]) for row in rows]
    shown: dict[str, Iterable[str]] = {name: studies[name] for name in ("study", "model")}
    return "\n".join(_lines(shown | {"cells": states}))


def load_status(study_dir: Path) -> pd.DataFrame:
    """The ``cells`` table, followed by the cells that a sweep has not begun (``waiting``)."""
    ahead = pd.DataFrame([cell_row(record) for record in waiting_cells(study_dir)])
    try:
        begun = load_cells(study_dir, with_unreadable=True)
    except StudyError:
        if ahead.empty:
            raise
        return ahead
    return begun if ahead.empty else pd.concat([begun, ahead], ignore_index=True)


def counts(states: Iterable[str]) -> str:
    found = Counter(states)
    return ", ".join(f"{found[state]} {state}" for state in STATES if found[state])


def render(cells: pd.DataFrame) -> str:
    """The ``cells`` table as text: counts, what all cells share, and a line per cell, by state."""
    cells = cells.iloc[cells["status"].map(STATES.index).argsort(kind="stable")]

    def words(column: str, form: str) -> pd.Series:
        return cells[column].map(form.format, na_action="ignore").astype(object).fillna("")

    done = cells["steps_done"].fillna(0).map("{:g}/".format)
    numbers = words("exponent", " p={:g}") + words("crossover", " c={:g}")
    settings = {
        "model": words("model", "{}"),
        "optimizer": words("optimizer", "{}"),
        "lr": words("lr", "{:g}"),
        "scaling": words("scaling", "{}") + numbers,
        **({"contraction": words("contraction", "{}")} if "contraction" in cells else {}),
    }
    readable = cells["status"] != "unreadable"
    shared = {name: of for name, of in settings.items() if of[readable].nunique() < 2}
    notes = [note(cell) for cell in cells.to_dict("records")]
    shown: dict[str, Iterable[str]] = {
        **{name: words(name, "{}") for name in ("status", "cell_id")},
        **{name: of for name, of in settings.items() if name not in shared},
        "rank": words("rank", "{:.0f}"),
        "seed": words("seed", "{:.0f}"),
        "steps": done + words("steps", "{:.0f}"),
        "sec": words("seconds", "{:.1f}"),
        **({"note": notes} if any(notes) else {}),
    }
    in_words = printable(", ".join(f"{name} {max(of)}" for name, of in shared.items() if max(of)))
    return "\n".join(filter(None, [_summary(cells), in_words, *_lines(shown)]))


def _lines(shown: Mapping[str, Iterable[str]]) -> list[str]:
    """The lines of a table of these columns, as wide as the terminal. The last column is folded."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    *_, last = shown
    for column in shown:
        justify: Literal["left", "right"] = "right" if column in NUMBERS else "left"
        table.add_column(column, justify=justify, no_wrap=column != last)
    for row in zip(*shown.values(), strict=True):
        table.add_row(*(Text(printable(text)) for text in row))
    return table_lines(table, shutil.get_terminal_size((WIDE, 24)).columns)


def table_lines(table: Table, width: int = WIDE) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def _summary(cells: pd.DataFrame) -> str:
    return printable(f"{cells['study'].iloc[0]}: {counts(cells['status'])}")


def watch(study_dir: Path) -> None:
    """Print a line when states change, and at intervals; the table when nothing trains any more."""
    printed, states = -LINE_EVERY, ""
    width = shutil.get_terminal_size((WIDE, 24)).columns
    while True:
        cells, sweeps = load_status(study_dir), live_sweeps(study_dir)
        running = cells[cells["status"] == "running"].head(4).fillna({"steps_done": 0})
        if running.empty and not sweeps:
            break
        if counts(cells["status"]) != states or time.monotonic() - printed > LINE_EVERY:
            printed, states = time.monotonic(), counts(cells["status"])
            line = f"{time.strftime('%H:%M:%S')}  {_summary(cells)}"
            if found := [sweep.progress() for sweep in sweeps]:
                last = max(found, key=lambda each: each.seconds_left or 0.0)
                line += f"  {last.work:.0%}  {last.left}".rstrip()
            for cell in running.to_dict("records"):
                step = f"{cell['steps_done']:g}/{cell['steps']}"
                more = f"  rank {cell['rank']:.0f} {cell['scaling']} at step {step}"
                line += more if len(line + more) <= width else ""
            print(line, flush=True)
        time.sleep(max(1.0, len(cells) / 500))  # a reading takes 1 ms a cell
    print(f"{render(cells)}\nnext: {command_line('report', study_dir)}", flush=True)


# What `study train` shows.


class Display:
    """Progress of one pack of ``cells``: a bar on a terminal, lines of log elsewhere."""

    def __init__(self, study_dir: Path, cells: int, steps: int, posted: Path | None = None) -> None:
        self.name, self.cells, self.steps = study_dir.name, cells, steps
        self.sweep = LiveSweep.read(posted) if posted else None
        self.console = Console(
            stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True
        )
        own = partial(Column, no_wrap=True, overflow="ellipsis")
        self.bar = Progress(
            TextColumn("{task.description}", markup=False, table_column=own(max_width=14)),
            BarColumn(bar_width=10),
            TaskProgressColumn(),
            TextColumn("{task.fields[line]}", markup=False, table_column=own(ratio=1)),
            console=self.console,
            disable=not self.console.is_terminal,
            expand=True,
        )
        self.task = self.bar.add_task(self.name, total=1.0, line="loading")
        self.finished = 0
        self.logged_at = time.monotonic()
        self._read_progress()

    def start(self, label: str) -> None:
        self.label, self.began, self.first_tokens = label, time.monotonic(), -1.0

    def advance(self, metrics: Sequence[Mapping[str, float]]) -> None:
        """One step of the fold is done. ``metrics``: a row for each cell that has not diverged."""
        if not metrics:
            return
        now, tokens = time.monotonic(), sum(row["tokens"] for row in metrics)
        if now - self.read_at > READ_EVERY:
            self._read_progress()
        if self.first_tokens < 0:
            self.first_at, self.first_tokens = now, tokens
        rate = (tokens - self.first_tokens) / max(1e-9, now - self.first_at)
        loss = next((f"loss {row['loss']:.4f}" for row in metrics if "loss" in row), "")
        step = f"step {metrics[0]['step']:.0f}/{self.steps}"
        if self.bar.disable and now - self.logged_at > LINE_EVERY:
            self.say(self._line(self.label, step, loss, f"{rate:.0f} tokens/s"))
        # A narrow terminal cuts off the end of a bar's line.
        line = self._line(step, loss, self.label, f"{rate:.0f} tokens/s")
        self.bar.update(self.task, completed=self.ahead.work if self.ahead else 0.0, line=line)

    def finish(self, label: str, status: str) -> None:
        self._read_progress()
        self.finished += status in ENDED
        if self.bar.disable or status != "complete":
            self.say(self._line(label, f"{status} in {time.monotonic() - self.began:.1f} s"))

    def say(self, line: str) -> None:
        """Print a line of log on stderr; above the bar on a terminal."""
        self.logged_at = time.monotonic()
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone
            self.console.print(f"[{self.name}] {line}")

    def _read_progress(self) -> None:
        self.read_at = time.monotonic()
        self.ahead = self.sweep.progress() if self.sweep else None

    def _line(self, *parts: str) -> str:
        """``9 of 12 cells done  0:03:10 left  adamw rslora rank 8 seed 0  step 3/100``."""
        done, cells, left = self.finished, self.cells, ""
        if self.ahead:
            done = sum(self.ahead.states[state] for state in ENDED)
            cells, left = self.ahead.states.total(), self.ahead.left
        said = [f"{done} of {count_noun(cells, 'cell')} done", left, *parts]
        return "  ".join(part for part in said if part)
