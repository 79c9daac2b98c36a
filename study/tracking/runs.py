"""``tracker=wandb``: one W&B run per cell, told of its rows by a thread of its own.

Training hands a row over and goes on; starting a run, which may ask a server, and writing happen in the thread. What
fails there is said once, and the process has no tracker from then on.
"""

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
from study.tracking.names import history_row, plain
from study.vocabulary.quantities import SITES

if TYPE_CHECKING:
    import wandb

_PATIENCE = 30.0
"""Seconds that a server has to answer at the start of a run, and to take in what is left at its end."""


class Untracked:
    """``tracker=none``: nobody is told."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def start(self, record: Mapping[str, Any], label: str) -> None:
        """A cell begins."""

    def log(self, cell_id: str, metrics: Mapping[str, float], probes: pd.DataFrame | None) -> None:
        """A cell has done a step."""

    def finish(self, cell_id: str, status: str, fields: Mapping[str, Any]) -> None:
        """A cell has ended."""


class WandbRuns:
    """The runs of one pack's cells; a context manager. ``say`` gets the one line that there is if something fails."""

    given_up: ClassVar[bool] = False
    """Whether a failure has ended tracking in this process: the next pack would only wait for the same server."""

    def __init__(self, config: TrackerConfig, pack: int, say: Callable[[str], None]) -> None:
        self.config, self.pack, self.say = config, pack, say
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
        """A cell begins: ``record`` is what the store has of it, ``label`` what people call it."""
        self._tasks.put(partial(self._start, dict(record), label))

    def log(self, cell_id: str, metrics: Mapping[str, float], probes: pd.DataFrame | None) -> None:
        """A cell has done a step; ``probes`` are its measurements if it was a probed one."""
        self._tasks.put(partial(self._log, cell_id, metrics, probes))

    def finish(self, cell_id: str, status: str, fields: Mapping[str, Any]) -> None:
        """A cell has ended; ``fields`` are what its record says of that."""
        self._tasks.put(partial(self._finish, cell_id, status, fields))

    # In the thread.

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if WandbRuns.given_up:
                continue
            try:
                task()
            except Exception as error:  # whatever it was, it is no reason to stop training
                self._give_up(one_line(error))

    def _give_up(self, why: str) -> None:
        if not WandbRuns.given_up:
            WandbRuns.given_up = True
            self.say(f"W&B is told no more ({why}); training and its results go on without it")

    def _start(self, record: dict[str, Any], label: str) -> None:
        run = start_run(
            self.config,
            id=record["cell_id"],
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
        # A cell that was interrupted is trained from the start, to the same numbers: W&B has the first of them.
        if step >= run.starting_step:
            run.log(history_row(metrics, probes, self.sites), step=step)

    def _finish(self, cell_id: str, status: str, fields: Mapping[str, Any]) -> None:
        run = self.runs.pop(cell_id)
        run.summary.update({"status": status, **fields})
        run.finish(exit_code=int(status == "failed"))


def one_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


Tracker = WandbRuns | Untracked


def tracker(config: TrackerConfig, pack: int, say: Callable[[str], None]) -> Tracker:
    """Whom to tell of a pack's results, as the configuration says. Imports nothing of W&B's before the first cell."""
    return (
        Untracked() if config.name == "none" or WandbRuns.given_up else WandbRuns(config, pack, say)
    )


def silenced() -> Any:
    """The ``wandb`` package with its own lines in the terminal turned off: they would run into the display's."""
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    return wandb


def start_run(tracker: TrackerConfig, **about: Any) -> "wandb.Run":
    """A run of W&B that is one of several in this process and leaves terminal, code and machine alone.

    Raises what W&B raises, and ``OSError`` where ``tracker.dir`` can't be written: W&B itself would quietly write
    elsewhere.
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
        disable_git=True,  # the record has the commit, the versions and the device ...
        x_save_requirements=False,
        save_code=False,
        x_disable_meta=True,  # ... and what else W&B would note, arguments and environment, is nobody's business
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
