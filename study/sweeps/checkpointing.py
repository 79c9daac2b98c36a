"""When the cells of a fold are checkpointed. Training waits while the state is written."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from study.config import Interval, interval
from study.store import CellWriter
from study.store.checkpoints import load_newest, save
from study.sweeps.cells import Cell
from study.training.checkpoint import Snapshot
from study.training.loop import CellStep

COST_SHARE = 20
"""A checkpoint is followed by so many times its own time without one: at most 5 % of a run."""

Say = Callable[[str], Any]


def newest(cell: Cell, device: torch.device, say: Say) -> Snapshot | None:
    """The state from which ``cell`` can go on; None if it must begin with step 0.

    ``say`` gets a line about each checkpoint that can't be used. Costs reading the file twice.
    """
    found = load_newest(cell.folder, cell.id, say)
    if found is None or found.step > cell.config.train.steps:
        return None
    drawn_on = found.state.get("device")
    if cell.config.adapter.dropout and drawn_on != device.type:
        say(
            f"cell {cell.id}: its checkpoint has the dropout stream of device={drawn_on}, and "
            f"{device.type} has another one: it begins again"
        )
        return None
    return Snapshot.of(found)


class Schedule:
    """At which steps checkpoints are due.

    ``every``: the work between two; None: never. With a time, a checkpoint is also followed by
    :data:`COST_SHARE` times its own cost without one. ``seconds``: that the last one took.
    """

    def __init__(
        self, every: Interval | None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.every, self.clock = every, clock
        self.seconds = 0.0
        self._since = clock()
        self._step: int | None = None

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after ``step``. Call it after every step."""
        if self._step is None:
            self._step = step - 1  # the fold began with this step
        if self.every is None:
            return False
        if self.every.steps is not None:
            return step - self._step >= self.every.steps
        least = max(self.every.seconds or 0.0, COST_SHARE * self.seconds)
        return self.clock() - self._since >= least

    def taken(self, step: int, seconds: float) -> None:
        """A checkpoint holds the state after ``step``. It took so many ``seconds``."""
        self._step, self._since, self.seconds = step, self.clock(), seconds


class Checkpoints:
    """Writes the checkpoints of one fold.

    ``writers``: one for each cell of ``fold``. Before a checkpoint gets its name, the rows that
    were appended are put on disk; so append those of earlier steps before :meth:`write`. ``say``
    gets a line if a checkpoint can't be written; training goes on without it.
    """

    def __init__(self, fold: Sequence[Cell], writers: Sequence[CellWriter], say: Say) -> None:
        every = fold[0].config.checkpoint.every
        self.fold, self.writers, self.say = fold, writers, say
        self.schedule = Schedule(None if every is None else interval("checkpoint.every", every))
        self._written: int | None = None
        self._failing = False

    def due(self, step: int) -> bool:
        """Whether to call :meth:`write` with the results of ``step``. Call it after every step.

        Not after the last step: the cells are about to end.
        """
        return self.schedule.due(step) and step < self.fold[0].config.train.steps

    def write(self, results: Sequence[CellStep | None]) -> None:
        """Checkpoint every cell that goes on after a step, unless it has been.

        Raises what is no error of the disk.
        """
        alive = [result for result in results if result is not None and not result.diverged]
        if not alive or alive[0].step == self._written:
            return
        step, began = alive[0].step, time.perf_counter()
        try:
            for result in alive:
                cell = self.fold[result.cell]
                checkpoint = result.snapshot().checkpoint(cell.id)
                save(cell.folder, checkpoint, self.writers[result.cell].sync)
            self._written, self._failing = step, False
        except OSError as error:
            if not self._failing:  # one line about a disk that is full, not one an interval
                cause = os.strerror(error.errno) if error.errno else str(error)
                self.say(
                    f"no checkpoint could be written to {self.fold[0].folder} ({cause}): training "
                    "goes on without"
                )
            self._failing = True
        self.schedule.taken(step, time.perf_counter() - began)
