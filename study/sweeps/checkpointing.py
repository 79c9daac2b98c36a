"""When the cells of a fold are checkpointed, and the thread that writes.

After a step that is due, the state of every cell is copied to the host, and a thread writes the
copies while training goes on. If the host's memory can't hold copies, each cell is written before
the next step, from where its state is.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import psutil
import torch

from study.config import CellConfig, Interval, interval
from study.reading import free_memory
from study.store.checkpoints import load_newest, save
from study.sweeps.cells import Cell
from study.training.checkpoint import Snapshot
from study.training.devices import choose_device
from study.training.loop import CellStep

COST_SHARE = 20
"""A checkpoint is followed by so many times its own time without one: at most 5 % of a run."""
MEMORY_SHARE = 0.8
"""The share of the available memory that copies may take."""

Say = Callable[[str], Any]
Part = tuple[int, Snapshot]
"""A cell's number in its fold, and its state."""


class Rows(Protocol):
    """The writer of a cell's rows."""

    def sync(self) -> None:
        """Wait until all rows that were appended are on disk."""
        ...


def newest(cell: Cell, device: torch.device, say: Say) -> Snapshot | None:
    """The state from which ``cell`` can go on; None if it must begin with step 0.

    ``say`` gets a line about each checkpoint that can't be used. Costs reading the file twice, and
    no memory: the tensors are read when training begins.
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


@dataclass(frozen=True)
class Cost:
    """What a checkpoint of a fold took: its bytes, and the seconds of copying and of writing.

    Training waits for the copy. It waits for the writing only where memory can't hold a copy.
    """

    nbytes: int = 0
    copying: float = 0.0
    writing: float = 0.0

    @property
    def seconds(self) -> float:
        """Copying and writing."""
        return self.copying + self.writing


class Schedule:
    """At which steps checkpoints are due.

    ``every``: the work between two; None: never. With a time, a checkpoint is also followed by
    :data:`COST_SHARE` times its own cost without one. ``cost``: of the last one.
    """

    def __init__(
        self, every: Interval | None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.every, self.clock = every, clock
        self.cost = Cost()
        self._since = clock()
        self._step: int | None = None

    @property
    def by_time(self) -> bool:
        """Whether checkpoints go by time, not by steps."""
        return self.every is not None and self.every.seconds is not None

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after ``step``. Call it after every step."""
        if self._step is None:
            self._step = step - 1  # the fold began with this step
        if self.every is None:
            return False
        if self.every.steps is not None:
            return step - self._step >= self.every.steps
        least = max(self.every.seconds or 0.0, COST_SHARE * self.cost.seconds)
        return self.clock() - self._since >= least

    def taken(self, step: int) -> None:
        """A checkpoint holds the state after ``step``."""
        self._step, self._since = step, self.clock()


class Checkpoints:
    """Writes the checkpoints of one fold, at most one of each cell at a time.

    ``rows``: the writer of each cell of ``fold``. Before a checkpoint gets its name, the rows that
    were appended are put on disk; so append those of earlier steps before :meth:`write`. ``say``
    gets a line if a checkpoint can't be written; training goes on without it.
    """

    def __init__(self, fold: Sequence[Cell], rows: Sequence[Rows], say: Say) -> None:
        every = fold[0].config.checkpoint.every
        self.fold, self.rows, self.say = fold, rows, say
        self.schedule = Schedule(None if every is None else interval("checkpoint.every", every))
        self.written: int | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._failing = False

    def due(self, step: int) -> bool:
        """Whether to call :meth:`write` with the results of ``step``. Call it after every step.

        Not while the thread writes, if checkpoints go by time. Not after the last step: the cells
        are about to end. Raises what the thread raised, other than errors of the disk.
        """
        writing = self._thread is not None and self._thread.is_alive()
        if not writing:
            self.flush()
        is_last = step >= self.fold[0].config.train.steps
        return self.schedule.due(step) and not is_last and not (writing and self.schedule.by_time)

    def write(self, results: Sequence[CellStep | None]) -> None:
        """Checkpoint every cell that goes on after a step, if possible while training goes on."""
        self.flush()
        if not (alive := _alive(results)):
            return
        step = alive[0].step
        snapshots = [(result.cell, result.snapshot()) for result in alive]
        size = sum(snapshot.nbytes for _, snapshot in snapshots)
        if size > MEMORY_SHARE * available_memory(self.fold[0].config):
            self._save(snapshots, step)
            self.flush()
        else:
            began = time.perf_counter()
            copies = [(cell, snapshot.copied()) for cell, snapshot in snapshots]
            copying = time.perf_counter() - began
            self._thread = threading.Thread(
                target=self._save, args=(copies, step, copying), name="checkpoint", daemon=True
            )
            self._thread.start()
        self.schedule.taken(step)

    def now(self, results: Sequence[CellStep | None]) -> bool:
        """Checkpoint every cell that goes on after a step, and wait for it.

        Returns whether the state is on disk.
        """
        self.flush()
        if not (alive := _alive(results)):
            return True
        step = alive[0].step
        if self.written != step:
            snapshots = [(result.cell, result.snapshot()) for result in alive]
            self._save(snapshots, step)
            self.flush()
            self.schedule.taken(step)
        return self.written == step

    def flush(self) -> None:
        """Wait for the thread. Raises what it raised, other than errors of the disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if isinstance(error, OSError):
            if not self._failing:  # one line about a disk that is full, not one an interval
                cause = os.strerror(error.errno) if error.errno else str(error)
                place = self.fold[0].folder
                self.say(
                    f"no checkpoint could be written to {place} ({cause}): training goes on without"
                )
            self._failing = True
        elif error is not None:
            raise error

    def _save(self, snapshots: Sequence[Part], step: int, copying: float = 0.0) -> None:
        """In the thread, or in the loop where memory can't hold copies. :meth:`flush` reports."""
        began, nbytes = time.perf_counter(), sum(snapshot.nbytes for _, snapshot in snapshots)
        try:
            for cell, snapshot in snapshots:
                checkpoint = snapshot.checkpoint(self.fold[cell].id)
                save(self.fold[cell].folder, checkpoint, self.rows[cell].sync)
            self.written, self._failing = step, False
        except BaseException as error:
            self._error = error
        self.schedule.cost = Cost(nbytes, copying, time.perf_counter() - began)


def available_memory(config: CellConfig) -> float:
    """Bytes that copies may take: free on this machine and, on a CPU, in ``pack.memory_gb``."""
    free, allowed = free_memory(), config.pack.memory_gb
    if allowed is None or choose_device(config.device).type != "cpu":
        return free
    return min(free, allowed * 2**30 - psutil.Process().memory_info().rss)


def _alive(results: Sequence[CellStep | None]) -> list[CellStep]:
    return [result for result in results if result is not None and not result.diverged]
