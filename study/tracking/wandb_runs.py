"""``tracker=wandb``: the runs of cells in W&B."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.config import TrackerConfig
from study.tracking.names import plain, rule_of, tags
from study.tracking.writing import PATIENCE, Runs

if TYPE_CHECKING:
    import wandb


class WandbRuns(Runs):
    """Runs with the group of their study, the rule as their job type, and tags."""

    def open(self, record: dict[str, Any], name: str) -> "wandb.Run":
        """The run of a cell. The same cell of the same study has the same run id."""
        about = {key: value for key, value in record.items() if key not in ("config", "status")}
        return start_run(
            self.config,
            id=run_id(record["study"], record["cell_id"]),
            name=name,
            group=record["study"],
            job_type=rule_of(record),
            tags=tags(record),
            config=plain(record["config"] | about),
        )

    def write(self, run: "wandb.Run", row: dict[str, float], step: int) -> None:
        """Write a row, unless W&B has the step: an interrupted cell begins again with the same
        numbers.
        """
        if step >= run.starting_step:
            run.log(row, step=step)

    def close(self, run: "wandb.Run", status: str, fields: Mapping[str, Any]) -> None:
        """End the run, with the status of the cell in its summary."""
        run.summary.update({"status": status, **fields})
        run.finish(exit_code=int(status == "failed"))


def run_id(study: str, cell_id: str) -> str:
    """The id of a cell's run. W&B's ids are unique in a project, and two studies of one project may
    have the same cell.

    The study is hashed, because its name may have characters and lengths that W&B refuses.
    """
    return f"{hashlib.sha256(study.encode()).hexdigest()[:8]}-{cell_id}"


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
        init_timeout=PATIENCE,
        finish_timeout=PATIENCE,
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
