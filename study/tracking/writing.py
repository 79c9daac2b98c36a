"""The runs of a tracker: one per cell, written by a separate thread.

Training puts each row into a queue and continues. The thread starts runs, which may wait for a
server, and writes the rows. The first error prints one line and turns tracking off for the process.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Any, ClassVar, Self

import pandas as pd

from study.config import TrackerConfig, chosen
from study.errors import one_line
from study.tracking.names import history_row
from study.vocabulary.quantities import SITES
from study.vocabulary.trackers import TRACKERS

PATIENCE = 30.0
"""Seconds to wait for a server at the start of a run, and for the upload at its end."""

Task = Callable[[], None]


class Runs(ABC):
    """The runs of one pack's cells; a context manager. ``notify`` gets one line on an error.

    A subclass writes them with a library. Where that can write one run at a time, the rows of other
    cells of a fold are kept until the run has ended.
    """

    given_up: ClassVar[bool] = False
    """Whether an error has turned tracking off in this process. The next pack would probably fail
    in the same way, after waiting for the same server."""

    def __init__(self, config: TrackerConfig, notify: Callable[[str], None]) -> None:
        self.config, self.notify = config, notify
        self.kind = TRACKERS[config.name]
        self.sites = chosen("tracker.sites", config.sites, SITES)
        self.runs: dict[str, Any] = {}
        self._holder: str | None = None
        self._kept: dict[str, list[Task]] = {}
        self._tasks: SimpleQueue[tuple[str, Task] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tasks.put(None)
        self._thread.join(2 * PATIENCE)
        if self._thread.is_alive():
            self._give_up(f"no answer in {2 * PATIENCE:.0f} s")

    def start(self, record: Mapping[str, Any], name: str) -> None:
        """A cell starts. ``record``: its ``record.json``. ``name``: the name of the run."""
        cell_id = record["cell_id"]
        self._tasks.put((cell_id, partial(self._start, dict(record), name)))

    def log(self, cell_id: str, metrics: Mapping[str, float], probes: pd.DataFrame | None) -> None:
        """A cell has finished a step. ``probes``: its probe rows, if the step was probed."""
        self._tasks.put((cell_id, partial(self._log, cell_id, metrics, probes)))

    def finish(self, cell_id: str, status: str, fields: Mapping[str, Any]) -> None:
        """A cell has ended. ``fields``: the fields that the end adds to its record."""
        self._tasks.put((cell_id, partial(self._finish, cell_id, status, fields)))

    # The methods below run in the thread.

    @abstractmethod
    def open(self, record: dict[str, Any], name: str) -> Any:
        """Start the run of a cell. The arguments are those of :meth:`start`."""

    @abstractmethod
    def write(self, run: Any, row: dict[str, float], step: int) -> None:
        """Write a row of the run."""

    @abstractmethod
    def close(self, run: Any, status: str, fields: Mapping[str, Any]) -> None:
        """End the run. The arguments are those of :meth:`finish`."""

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if Runs.given_up:
                continue
            try:
                self._take(*task)
            except Exception as error:  # Trackers raise many types; none may stop training.
                self._give_up(one_line(error))

    def _give_up(self, why: str) -> None:
        if not Runs.given_up:
            Runs.given_up = True
            self.notify(f"{self.kind.label} tracking stopped ({why}); training continues without")

    def _take(self, cell_id: str, task: Task) -> None:
        """Do a task of a cell, or keep it until the run of another cell has ended."""
        if self._holder not in (None, cell_id):
            self._kept.setdefault(cell_id, []).append(task)
            return
        self._holder = None if self.kind.at_once else cell_id
        task()

    def _start(self, record: dict[str, Any], name: str) -> None:
        self.runs[record["cell_id"]] = self.open(record, name)

    def _log(self, cell_id: str, metrics: Mapping[str, float], probes: pd.DataFrame | None) -> None:
        row = history_row(metrics, probes, self.sites)
        self.write(self.runs[cell_id], row, int(metrics["step"]))

    def _finish(self, cell_id: str, status: str, fields: Mapping[str, Any]) -> None:
        self.close(self.runs.pop(cell_id), status, fields)
        self._holder = None
        if self._kept:
            other = next(iter(self._kept))
            for task in self._kept.pop(other):
                self._take(other, task)
