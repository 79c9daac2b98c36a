"""The runs of cells in an experiment tracker: one run per cell.

W&B has its own class here, because the workspace needs its groups and job types. All others use the
tracker classes of ``accelerate.tracking``. Many group charts by the part of a name before a slash.
"""

import contextlib
import contextvars
import hashlib
import io
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pandas as pd

from study.config import TrackerConfig, chosen
from study.errors import StudyError, one_line
from study.vocabulary.extras import NONE, TRACKERS, WANDB
from study.vocabulary.quantities import MODEL_WIDE, SITES, TRAIN
from study.vocabulary.scaling import rule_words
from study.vocabulary.statuses import BROKEN, note

if TYPE_CHECKING:
    import wandb

PATIENCE = 30.0
"""Seconds to wait for W&B's server at the start of a run, and for the upload at its end."""


def norm_of(site: str, batch: str = TRAIN) -> str:
    """``grad_norm``, ``update_norm`` or ``<site>_norm``, with a batch that is not training's."""
    short = {"adapter_grad": "grad_norm", "adapter_update": "update_norm"}
    return short.get(site, f"{site}_norm") + ("" if batch == TRAIN else f"_{batch}")


def rule_of(record: Mapping[str, Any]) -> str:
    """``rslora``, or ``power p=0.75``: the scaling rule of a cell's record."""
    adapter = record["config"]["adapter"]
    return rule_words(adapter["scaling"], adapter["exponent"], adapter.get("crossover"))


def tags(record: Mapping[str, Any]) -> list[str]:
    """The rule, rank, optimizer and model of a cell's record; W&B allows 64 characters for each."""
    rank, optimizer = record["config"]["adapter"]["rank"], record["config"]["optimizer"]["name"]
    return [tag[-64:] for tag in (rule_of(record), f"rank {rank}", optimizer, record["model"])]


def plain(value: Any) -> Any:
    """A value that JSON can hold: an infinite rank becomes the string ``inf``."""
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def flat(record: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """A cell's configuration by dotted key, without empty values and with lists as text."""
    [config] = pd.json_normalize(plain(record["config"])).to_dict("records")
    found = {key: record[key] for key in ("study", "cell_id", "gamma")} | config
    return {
        str(key): value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in found.items()
        if value is not None
    }


def history_row(
    metrics: Mapping[str, float], probes: pd.DataFrame | None, sites: Sequence[str]
) -> dict[str, float]:
    """One step of a cell: every metric, and the ``norm`` of each probed layer at ``sites``."""
    row = {name: value for name, value in metrics.items() if name != "step"}
    if probes is None or "norm" not in probes:
        return row
    sent = probes[probes["site"].isin(sites)]
    layers = sent[["layer", "block", "kind"]].drop_duplicates()
    shared = set(layers.loc[layers.duplicated(["block", "kind"], keep=False), "layer"])
    for each in sent.astype({"norm": "float32"}).to_dict("records"):  # the store's precision
        layer, block, name = each["layer"], each["block"], each["kind"]
        if layer in shared - {MODEL_WIDE}:
            name = layer.partition(f".{block}.")[2] or layer
        place = f"block_{block:02d}/" if block >= 0 else ""
        row[f"{norm_of(each['site'], each['batch'])}/{place}{name}"] = each["norm"]
    return row


ARGUMENTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "tensorboard": lambda about: {"run_name": about.name, "logging_dir": about.folder},
    "trackio": lambda about: {
        "run_name": about.project,
        "name": about.name,
        "group": about.study,
        "resume": "allow",
        **off("embed auto_log_cpu auto_log_gpu"),
    },
    "mlflow": lambda about: {
        "experiment_name": about.project,
        "run_name": about.name,
        "tags": dict(zip(("rule", "rank", "optimizer", "model"), about.tags, strict=True))
        | {"study": about.study},
    },
    "comet_ml": lambda about: {
        "run_name": about.project,
        "online": about.is_online,
        "mode": "create",
        "experiment_config": import_module("comet_ml").ExperimentConfig(
            name=about.name,
            tags=about.tags,
            offline_directory=str(about.folder),
            display_summary_level=0,
            **off("log_code log_env_details log_git_metadata parse_args auto_output_logging"),
        ),
    },
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
        **off("reuse_last_task_id auto_connect_arg_parser auto_connect_frameworks"),
        **off("auto_connect_streams auto_resource_monitoring"),
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
"""By tracker, the arguments of accelerate's class (:meth:`Tracker.open`). They switch off records
of the machine, because arguments, code and environment may be private."""


def off(options: str) -> dict[str, bool]:
    return dict.fromkeys(options.split(), False)


@dataclass
class _Run:
    """The run of a cell. ``open``: that of the library, once it is there. ``rows``: not written."""

    record: dict[str, Any]
    name: str
    open: Any = None
    rows: list[tuple[dict[str, float], int]] = field(default_factory=list)


class Tracker:
    """The runs of one pack's cells. ``notify`` gets a line on the first error."""

    def __init__(self, config: TrackerConfig, notify: Callable[[str], None]) -> None:
        self.config, self.notify = config, notify
        self.runs: dict[str, _Run] = {}
        self.is_off = config.name == NONE
        """Whether there is no tracker, or it has failed."""
        self.alerted = False
        self.at_once = not self.is_off and TRACKERS[config.name].at_once
        self.sites = chosen("tracker.sites", config.sites, SITES)
        # Trackio ends the run that it finds in this process's context once more, and prints.
        self._context = contextvars.copy_context()

    def start(self, record: Mapping[str, Any], name: str) -> None:
        run = self.runs[record["cell_id"]] = _Run(dict(record), name)
        if self.at_once:
            self._attempt(lambda: self._write_rows(run))

    def log(self, cell_id: str, metrics: Mapping[str, float], probes: pd.DataFrame | None) -> None:
        """A cell has finished a step. ``probes``: its probe rows, if the step was probed."""
        if self.is_off:
            return
        run = self.runs[cell_id]
        run.rows.append((history_row(metrics, probes, self.sites), int(metrics["step"])))
        if self.at_once:
            self._attempt(lambda: self._write_rows(run))

    def finish(self, cell_id: str, status: str, fields: Mapping[str, Any]) -> None:
        """A cell has ended. With ``tracker.alerts``, the first one that breaks sends one."""
        run = self.runs.pop(cell_id)

        def end() -> None:
            self._write_rows(run)
            if status in BROKEN and self.config.alerts and not self.alerted:
                self.alerted = True
                lr = run.record["config"]["optimizer"]["lr"]
                why = f"{note({**fields, 'status': status})}, learning rate {lr:g}"
                told = {"title": f"{run.record['study']}: {status}", "text": f"{run.name}: {why}"}
                with contextlib.redirect_stdout(io.StringIO()):  # only W&B and Trackio have alerts
                    getattr(run.open, "tracker", run.open).alert(**told)
            self.close(run.open, status, fields)

        self._attempt(end)

    def _write_rows(self, run: _Run) -> None:
        if run.open is None:
            run.open = self.open(run.record, run.name)
        for row, step in run.rows:
            self.write(run.open, row, step)
        run.rows.clear()

    def _attempt(self, act: Callable[[], None]) -> None:
        if self.is_off:
            return
        try:
            self._context.run(act)
        except Exception as error:  # Trackers raise many types; none may stop training.
            self.is_off = True
            label, why = TRACKERS[self.config.name].label, one_line(error)
            self.notify(f"{label} tracking stopped ({why}); training continues without")

    def open(self, record: dict[str, Any], name: str) -> Any:
        """A run of accelerate's class, with the flat configuration. Nothing is printed."""
        import accelerate
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        accelerate.PartialState()  # the classes ask it whether this is the main process
        kind = LOGGER_TYPE_TO_CLASS.get(self.config.name)
        if kind is None:
            have = f"accelerate {accelerate.__version__}"
            raise StudyError(f"{have} has no {self.config.name}: pip install -U accelerate")
        own = re.sub(r"[^\w .=+-]", "_", name)[:180]  # it may be the name of a folder
        about = SimpleNamespace(
            project=self.config.project or record["study"],
            study=record["study"],
            name=f"{own} {record['cell_id']}",
            tags=tags(record),
            folder=Path(self.config.dir or "."),
            is_online=self.config.mode == "online",
        )
        if self.config.dir is not None:
            about.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(io.StringIO()):  # it would break the progress display
            run = kind(**ARGUMENTS[self.config.name](about))
            run.start()
            run.store_init_configuration(flat(record))
        return run

    def write(self, run: Any, row: dict[str, float], step: int) -> None:
        run.log({name: float(value) for name, value in row.items()}, step=step)

    def close(self, run: Any, status: str, fields: Mapping[str, Any]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            run.finish()


class WandbRuns(Tracker):
    """Runs with the group of their study, the rule as their job type, and tags."""

    def open(self, record: dict[str, Any], name: str) -> "wandb.Run":
        about = {key: value for key, value in record.items() if key not in ("config", "status")}
        return start_run(
            self.config,
            id=run_id(record["study"], record["cell_id"]),
            name=name,
            group=record["study"],
            job_type=rule_of(record),
            tags=tags(record),
            config=plain(about | record["config"]),  # about has labels of the model and the data
        )

    def write(self, run: "wandb.Run", row: dict[str, float], step: int) -> None:
        if step >= run.starting_step:  # an interrupted cell begins again with the same numbers
            run.log(row, step=step)

    def close(self, run: "wandb.Run", status: str, fields: Mapping[str, Any]) -> None:
        run.summary.update({"status": status, **fields})
        run.finish(exit_code=int(status == "failed"))


def tracker(config: TrackerConfig, notify: Callable[[str], None]) -> Tracker:
    return (WandbRuns if config.name == WANDB else Tracker)(config, notify)


def run_id(study: str, cell_id: str) -> str:
    """The id of a cell's run. The study is hashed: W&B refuses some names."""
    return f"{hashlib.sha256(study.encode()).hexdigest()[:8]}-{cell_id}"


def silenced() -> Any:
    """The ``wandb`` package without its terminal output, which would break the progress display."""
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    return wandb


def start_run(tracker: TrackerConfig, **about: Any) -> "wandb.Run":
    """Start a W&B run, one of several in this process. It records no terminal, code or machine."""
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
