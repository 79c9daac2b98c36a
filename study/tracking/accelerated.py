"""The other trackers, through the tracker classes of ``accelerate.tracking``."""

import contextlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.errors import StudyError
from study.tracking.names import flat, tags
from study.tracking.writing import Runs

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

TAGS = ("rule", "rank", "optimizer", "model")
"""The names of the tags, for trackers that have named ones."""
LONGEST_NAME = 200
"""Characters of a run's name, which may be that of a folder."""


@dataclass(frozen=True)
class About:
    """What a tracker is told about a run. ``name`` ends in the cell's id.

    ``folder``: of the tracker's files. ``is_online``: whether to send them to the tracker's server.
    """

    project: str
    study: str
    name: str
    tags: list[str]
    folder: Path
    is_online: bool


def _comet(about: About) -> dict[str, Any]:
    settings = import_module("comet_ml").ExperimentConfig(
        name=about.name,
        tags=about.tags,
        offline_directory=str(about.folder),
        # As for W&B: arguments, code and environment may be private.
        log_code=False,
        log_env_details=False,
        log_git_metadata=False,
        parse_args=False,
        auto_output_logging=False,
        display_summary_level=0,
    )
    return {
        "run_name": about.project,
        "online": about.is_online,
        "mode": "create",
        "experiment_config": settings,
    }


ARGUMENTS: dict[str, Callable[[About], dict[str, Any]]] = {
    "tensorboard": lambda about: {"run_name": about.name, "logging_dir": about.folder},
    "trackio": lambda about: {
        "run_name": about.project,
        "name": about.name,
        "group": about.study,
        "resume": "allow",
        "embed": False,
        "auto_log_cpu": False,
        "auto_log_gpu": False,
    },
    "mlflow": lambda about: {
        "experiment_name": about.project,
        "run_name": about.name,
        "tags": {"study": about.study} | dict(zip(TAGS, about.tags, strict=True)),
    },
    "comet_ml": _comet,
    "aim": lambda about: {
        "run_name": about.name,
        "logging_dir": about.folder,
        "experiment": about.project,
        "system_tracking_interval": None,
        "capture_terminal_logs": False,
    },
    "clearml": lambda about: {
        "run_name": about.name,
        "project_name": about.project,
        "task_name": about.name,
        "tags": about.tags,
        "reuse_last_task_id": False,
        "auto_connect_arg_parser": False,
        "auto_connect_frameworks": False,
        "auto_connect_streams": False,
        "auto_resource_monitoring": False,
    },
    "dvclive": lambda about: {
        "run_name": about.name,
        "dir": str(about.folder / about.name),
        "save_dvc_exp": False,
        "dvcyaml": None,
    },
    "swanlab": lambda about: {
        "run_name": about.project,
        "experiment_name": about.name,
        "group": about.study,
        "tags": about.tags,
        "logdir": str(about.folder),
        "mode": "cloud" if about.is_online else "offline",
    },
}
"""By tracker, the arguments of accelerate's class. They switch off what records the machine."""


class AcceleratedRuns(Runs):
    """Runs by a class of accelerate. Every step is a row; the configuration is stored flat."""

    def open(self, record: dict[str, Any], name: str) -> "GeneralTracker":
        """Start a run and store the configuration. Nothing is printed.

        Raises the errors of the tracker, and :class:`StudyError` if accelerate has no such class.
        """
        import accelerate
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        accelerate.PartialState()  # the classes ask it whether this is the main process
        kind = LOGGER_TYPE_TO_CLASS.get(self.config.name)
        if kind is None:
            raise StudyError(
                f"accelerate {accelerate.__version__} has no {self.config.name}: "
                "pip install -U accelerate"
            )
        own = re.sub(r"[^\w .=+-]", "_", name)[: LONGEST_NAME - len(record["cell_id"]) - 1]
        about = About(
            project=self.config.project or record["study"],
            study=record["study"],
            name=f"{own} {record['cell_id']}",
            tags=tags(record),
            folder=Path(self.config.dir or "."),
            is_online=self.config.mode == "online",
        )
        if self.config.dir is not None:
            about.folder.mkdir(parents=True, exist_ok=True)
        with _silence():
            run = kind(**ARGUMENTS[self.config.name](about))
            run.start()
            run.store_init_configuration(flat(record))
        return run

    def write(self, run: "GeneralTracker", row: dict[str, float], step: int) -> None:
        """Write a row."""
        run.log({name: float(value) for name, value in row.items()}, step=step)

    def close(self, run: "GeneralTracker", status: str, fields: Mapping[str, Any]) -> None:
        """End the run. The status of the cell is in the store."""
        with _silence():
            run.finish()


def _silence() -> contextlib.redirect_stdout[io.StringIO]:
    """Inside, what a tracker prints on stdout is dropped: it would break the progress display."""
    return contextlib.redirect_stdout(io.StringIO())
