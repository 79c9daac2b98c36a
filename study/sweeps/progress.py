"""What a running sweep shows: a rich display on a terminal, plain log lines elsewhere.

Time left is the sweep's, over all its packs and processes, and goes by cost (:mod:`study.sweeps.agenda`).
"""

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from study.sweeps import agenda

_LOG_EVERY = 10.0  # seconds between plain lines while a cell trains
_LOOK_EVERY = (
    5.0  # seconds between looks at how far the sweep is: a look reads every record, 0.1 ms a cell
)


class Display:
    """Packs and cells done, step, loss, tokens per second and time left; a context manager around one pack.

    ``labels``: what to call the pack's cells, by cell id; ``steps``: the last step of each. A pack that no sweep has on
    its agenda is shown as all there is.
    """

    def __init__(self, study_dir: Path, labels: Mapping[str, str], steps: int) -> None:
        self.study_dir, self.labels, self.steps = study_dir, labels, steps
        mine = [
            held
            for held in agenda.agendas(study_dir)
            if any(cell.id in labels for cell in held.cells)
        ]
        self.agenda = mine[0] if mine else None
        self.pack = (
            next((cell.pack for cell in self.agenda.cells if cell.id in labels), 1)
            if self.agenda
            else 1
        )
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
        self.logged = time.monotonic()
        self.fold: Sequence[str] = ()
        self.finished = 0
        self.looked = 0.0
        self._look()

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

    def start(self, fold: Sequence[str]) -> None:
        """The cells of ``fold`` begin."""
        self.fold = fold
        self.fold_began = time.monotonic()

    def advance(self, metrics: Sequence[Mapping[str, float]]) -> None:
        """One step of the fold is done, with a row of ``metrics`` for each cell that is alive."""
        if not metrics:
            return
        if time.monotonic() - self.looked > _LOOK_EVERY:
            self._look()
        tokens = sum(row["tokens"] for row in metrics) / max(
            1e-9, time.monotonic() - self.fold_began
        )
        loss = next((f"loss {row['loss']:.4f}  " for row in metrics if "loss" in row), "")
        line = (
            f"{self._place(self.finished + 1)}  {self.labels[self.fold[0]]}  "
            f"step {metrics[0]['step']:.0f}/{self.steps}  {loss}{tokens:.0f} tokens/s{self._left()}"
        )
        self.bar.update(self.task, completed=self.sweep.work if self.sweep else 0.0, line=line)
        if self.bar.disable and time.monotonic() - self.logged > _LOG_EVERY:
            self.say(line)

    def finish(self, statuses: Mapping[str, str]) -> None:
        """The fold's cells are closed with these statuses, by cell id."""
        self._look()
        for cell, status in statuses.items():
            self.finished += 1
            if self.bar.disable or status != "complete":
                ended = f"{status} in {time.monotonic() - self.fold_began:.1f} s"
                self.say(
                    f"{self._place(self.finished)}  {self.labels[cell]}  {ended}{self._left()}"
                )

    def say(self, line: str) -> None:
        """A line for the log: above the bar on a terminal."""
        self.logged = time.monotonic()
        if self.bar.disable:
            print(f"[{self.study_dir.name}] {line}", file=sys.stderr, flush=True)
        else:
            self.bar.console.print(f"[{self.study_dir.name}] {line}", markup=False, highlight=False)

    def _look(self) -> None:
        self.looked = time.monotonic()
        self.sweep = agenda.progress(self.study_dir, self.agenda) if self.agenda else None

    def _place(self, cell: int) -> str:
        """``pack 2/3  cell 1/4 (9 of 12 done)``: the cell within its pack, and the sweep's cells in all its packs."""
        place = f"cell {cell}/{len(self.labels)}"
        if self.sweep is None or self.sweep.packs == 1:
            return place
        return f"pack {self.pack}/{self.sweep.packs}  {place} ({self.sweep.closed} of {self.sweep.cells} done)"

    def _left(self) -> str:
        """``  0:03:10 left`` in the whole sweep, as of now; nothing where that is not known yet."""
        if (
            self.sweep is None
            or self.sweep.seconds_left is None
            or self.sweep.closed == self.sweep.cells
        ):
            return ""
        left = max(0.0, self.sweep.seconds_left - (time.monotonic() - self.looked))
        return f"  {timedelta(seconds=round(left))} left"
