"""What a running sweep shows: a rich display on a terminal, plain log lines elsewhere.

The time left is that of the whole sweep, over all its packs and processes
(:mod:`study.sweeps.pace`).
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from study.sweeps import agenda, signals

MEASURING = "measuring the time left"
"""Stands for the time left until it can be told."""
_LOG_EVERY = 10.0
"""Seconds between plain lines while a cell trains."""
_READ_EVERY = 5.0
"""Seconds between readings of the sweep's progress. One reads every record: 0.1 ms per cell."""


class Display:
    """Progress of one pack: packs, cells and steps done, loss, tokens per second and time left.

    A context manager. ``labels``: a name for each of the pack's cells, by cell id. ``steps``: the
    last step. ``posted``: the file of the sweep's agenda; without one, a pack is shown as a sweep
    of its own.
    """

    def __init__(
        self, study_dir: Path, labels: Mapping[str, str], steps: int, posted: Path | None = None
    ) -> None:
        self.study_dir, self.labels, self.steps = study_dir, labels, steps
        self.agenda, self.pack = self._find_pack(posted)
        self.done: agenda.Done = {}
        self.sweep: agenda.Progress | None = None
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("[bold]{task.fields[study]}[/]"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[line]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("", total=1.0, study=study_dir.name, line="loading")
        self.logged_at = time.monotonic()
        self.fold: Sequence[str] = ()
        self.tokens_before = 0.0
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
        if time.monotonic() - self.read_at > _READ_EVERY:
            self._read_progress()
        seconds = max(1e-9, time.monotonic() - self.fold_began)
        tokens = (sum(row["tokens"] for row in metrics) - self.tokens_before) / seconds
        loss = next((f"loss {row['loss']:.4f}  " for row in metrics if "loss" in row), "")
        line = (
            f"{self._place(self.finished + 1)}  {self.labels[self.fold[0]]}  "
            f"step {metrics[0]['step']:.0f}/{self.steps}  {loss}{tokens:.0f} tokens/s{self._left()}"
        )
        self.bar.update(self.task, completed=self.sweep.work if self.sweep else 0.0, line=line)
        if self.bar.disable and time.monotonic() - self.logged_at > _LOG_EVERY:
            self.say(line)

    def finish(self, statuses: Mapping[str, str]) -> None:
        """The fold's cells have ended. ``statuses``: by cell id."""
        self._read_progress()
        for cell, status in statuses.items():
            self.finished += 1
            if self.bar.disable or status != "complete":
                ended = f"{status} in {time.monotonic() - self.fold_began:.1f} s"
                place = self._place(self.finished)
                self.say(f"{place}  {self.labels[cell]}  {ended}{self._left()}")

    def say(self, line: str) -> None:
        """Print a line of log on stderr; above the bar on a terminal."""
        self.logged_at = time.monotonic()
        if self.bar.disable:
            signals.say(f"[{self.study_dir.name}] {line}")
            return
        with contextlib.suppress(OSError):  # the terminal is gone
            self.bar.console.print(f"[{self.study_dir.name}] {line}", markup=False, highlight=False)

    def _find_pack(self, posted: Path | None) -> tuple[agenda.Agenda | None, int]:
        """The agenda, and the pack's number on it; (None, 1) without one."""
        found = agenda.read_agenda(posted) if posted else None
        for cell in found.cells if found else ():
            if cell.id in self.labels:
                return found, cell.pack
        return None, 1

    def _read_progress(self) -> None:
        self.read_at = time.monotonic()
        if self.agenda:
            self.sweep = agenda.progress(self.study_dir, self.agenda, self.done)

    def _place(self, cell: int) -> str:
        """``pack 2/3  cell 1/4 (9 of 12 done)``: the cell in its pack; cells done in all packs."""
        place = f"cell {cell}/{len(self.labels)}"
        if self.sweep is None or self.sweep.packs == 1:
            return place
        done = f"{self.sweep.closed} of {self.sweep.cells} done"
        return f"pack {self.pack}/{self.sweep.packs}  {place} ({done})"

    def _left(self) -> str:
        """``  0:03:10 left`` in the whole sweep; empty if there is no sweep, or if it has ended."""
        if self.sweep is None or self.sweep.closed == self.sweep.cells:
            return ""
        if self.sweep.seconds_left is None:
            return f"  {MEASURING}"
        left = max(0.0, self.sweep.seconds_left - (time.monotonic() - self.read_at))
        return f"  {timedelta(seconds=round(left))} left"
