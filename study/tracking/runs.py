"""``tracker=wandb``: one W&B run per cell, written by a separate thread.

Training puts each row into a queue and continues. The thread starts runs, which may wait for a
server, and writes the rows. The first error prints one line and turns tracking off for the process.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pandas as pd

from study.config import TrackerConfig, chosen
from study.errors import one_line
from study.tracking.names import history_row, plain
from study.vocabulary.quantities import SITES

if TYPE_CHECKING:
    import wandb

_PATIENCE = 30.0
"""Seconds to wait for the server at the start of a run, and for the upload at its end."""


class Untracked:
    """``tracker=none``: does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def start(self, record: Mapping[str, Any], label: str) -> None:
        """A cell starts."""

    def log(self, cell_id: str, metrics: Mapping[str, float], probes: pd.DataFrame | None) -> None:
        """A cell has finished a step."""

    def finish(self, cell_id: str, status: str, fields: Mapping[str, Any]) -> None:
        """A cell has ended."""


class WandbRuns:
    """The W&B runs of one pack's cells; a context manager. ``notify`` gets one line on an error."""

    given_up: ClassVar[bool] = False
    """Whether an error has turned tracking off in this process. The next pack would probably fail
    in the same way, after waiting for the same server."""

    def __init__(self, config: TrackerConfig, pack: int, notify: Callable[[str], None]) -> None:
        self.config, self.pack, self.notify = config, pack, notify
        self.sites = chosen("tracker.sites", config.sites, SITES)
        self.runs: dict[str, wandb.Run] = {}
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="wandb runs", daemon=True)

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
        self._thread.join(2 * _PATIENCE)
        if self._thread.is_alive():
            self._give_up(f"no answer in {2 * _PATIENCE:.0f} s")

    def start(self, record: Mapping[str, Any], label: str) -> None:
        """A cell starts. ``record``: its ``record.json``. ``label``: the name of the run."""
        self._tasks.put(partial(self._start, dict(record), label))

    def log(self, cell_id: str, metrics: Mapping[str, float], probes: pd.DataFrame | None) -> None:
        """A cell has finished a step. ``probes``: its probe rows, if the step was probed."""
        self._tasks.put(partial(self._log, cell_id, metrics, probes))

    def finish(self, cell_id: str, status: str, fields: Mapping[str, Any]) -> None:
        """A cell has ended. ``fields``: the fields that the end adds to its record."""
        self._tasks.put(partial(self._finish, cell_id, status, fields))

    # The methods below run in the thread.

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if WandbRuns.given_up:
                continue
            try:
                task()
            except Exception as error:  # W&B raises many types; none may stop training.
                self._give_up(one_line(error))

    def _give_up(self, why: str) -> None:
        if not WandbRuns.given_up:
            WandbRuns.given_up = True
            self.notify(f"W&B tracking stopped ({why}); training continues without it")

    def _start(self, record: dict[str, Any], label: str) -> None:
        run = start_run(
            self.config,
            id=run_id(record["study"], record["cell_id"]),
            name=label,
            group=record["study"],
            job_type=f"pack {self.pack}",
            config=plain(
                record["config"]
                | {key: value for key, value in record.items() if key not in ("config", "status")}
            ),
        )
        self.runs[record["cell_id"]] = run

    def _log(self, cell_id: str, metrics: Mapping[str, float], probes: pd.DataFrame | None) -> None:
        run, step = self.runs[cell_id], int(metrics["step"])
        # An interrupted cell trains again from the start, with the same numbers. W&B already has
        # the first steps.
        if step >= run.starting_step:
            run.log(history_row(metrics, probes, self.sites), step=step)

    def _finish(self, cell_id: str, status: str, fields: Mapping[str, Any]) -> None:
        run = self.runs.pop(cell_id)
        run.summary.update({"status": status, **fields})
        run.finish(exit_code=int(status == "failed"))


def run_id(study: str, cell_id: str) -> str:
    """The id of a cell's run. W&B's ids are unique in a project, and two studies of one project may
    have the same cell.

    The study is hashed, because its name may have characters and lengths that W&B refuses.
    """
    return f"{hashlib.sha256(study.encode()).hexdigest()[:8]}-{cell_id}"


Tracker = WandbRuns | Untracked


def tracker(config: TrackerConfig, pack: int, notify: Callable[[str], None]) -> Tracker:
    """The tracker of a pack. W&B is imported when the first cell starts."""
    if config.name == "none" or WandbRuns.given_up:
        return Untracked()
    return WandbRuns(config, pack, notify)


def silenced() -> Any:
    """The ``wandb`` package without its terminal output, which would break the progress display."""
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    return wandb


def start_run(tracker: TrackerConfig, **about: Any) -> "wandb.Run":
    """Start a W&B run, one of several in this process. It records no terminal, code or machine.

    Raises the errors of W&B, and ``OSError`` if ``tracker.dir`` is not writable: W&B would write to
    another folder without a message.
    """
    wandb = silenced()
    if tracker.mode == "online" and not wandb.login(prompt=False, verify=False):
        raise ValueError("no API key: run `wandb login`, or use tracker.mode=offline")
    folder = Path(tracker.dir or ".")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"tracker.dir={folder} is not writable")
    settings = wandb.Settings(
        silent=True,
        console="off",
        # The record already has the commit, the versions and the device. Arguments and environment,
        # which W&B would also store, may be private.
        disable_git=True,
        x_save_requirements=False,
        save_code=False,
        x_disable_meta=True,
        x_disable_stats=True,
        init_timeout=_PATIENCE,
        finish_timeout=_PATIENCE,
        finish_timeout_raises=True,
    )
    return wandb.init(
        project=tracker.project,
        entity=tracker.entity,
        dir=folder,
        mode=tracker.mode,
        resume="allow" if tracker.mode == "online" else None,
        reinit="create_new",
        settings=settings,
        **about,
    )
