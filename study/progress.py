"""What a running sweep shows: a rich display on a terminal, plain log lines elsewhere.

Time left goes by cost and not by cells: a cell of rank 1024 takes several times as long as one of rank 4.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

_LOG_EVERY = 10.0  # seconds between plain lines while a cell trains


class Display:
    """Cells done, step, loss, tokens per second and time left of one pack; a context manager.

    ``costs``: the relative cost of all of a cell's steps, by cell id; ``labels``: what to call it; ``steps``: how many
    results each cell yields.
    """

    def __init__(self, study: str, costs: Mapping[str, float], labels: Mapping[str, str], steps: int) -> None:
        self.study, self.costs, self.labels, self.steps = study, costs, labels, steps
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("[bold]{task.fields[study]}[/]"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[line]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("", total=sum(costs.values()), study=study, line="loading")
        self.began = self.logged = time.monotonic()
        self.spent = 0.0
        self.finished = 0
        self.fold: Sequence[str] = ()

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
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
        self.spent += sum(self.costs[cell] for cell in self.fold) / self.steps
        elapsed = time.monotonic() - self.began
        left = elapsed * (sum(self.costs.values()) - self.spent) / self.spent
        tokens = sum(row["tokens"] for row in metrics) / max(1e-9, time.monotonic() - self.fold_began)
        loss = next((f"loss {row['loss']:.4f}  " for row in metrics if "loss" in row), "")
        line = (
            f"cell {self.finished + 1}/{len(self.costs)}  {self.labels[self.fold[0]]}  "
            f"step {metrics[0]['step']:.0f}/{self.steps - 1}  {loss}{tokens:.0f} tokens/s  "
            f"{timedelta(seconds=round(left))} left"
        )
        self.bar.update(self.task, completed=self.spent, line=line)
        if self.bar.disable and time.monotonic() - self.logged > _LOG_EVERY:
            self.say(line)

    def finish(self, statuses: Mapping[str, str]) -> None:
        """The fold's cells are closed with these statuses, by cell id."""
        for cell, status in statuses.items():
            self.finished += 1
            if self.bar.disable or status != "complete":
                seconds = time.monotonic() - self.fold_began
                self.say(f"cell {self.finished}/{len(self.costs)}  {self.labels[cell]}  {status} in {seconds:.1f} s")

    def say(self, line: str) -> None:
        """A line for the log: above the bar on a terminal."""
        self.logged = time.monotonic()
        if self.bar.disable:
            print(f"[{self.study}] {line}", file=sys.stderr, flush=True)
        else:
            self.bar.console.print(f"[{self.study}] {line}", markup=False, highlight=False)
