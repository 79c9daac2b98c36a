"""Publish a study's exponents and figures to W&B, as artifacts of one extra run; and ``study
dashboard --wandb RESULTS/NAME``: a W&B workspace that compares LoRA with rsLoRA.

The workspace has one section per site, and one panel per kind of layer. Runs are grouped by rule
and rank, so each line is one rank of one rule, averaged over seeds and layers. Rules have their
colours of the figures.
"""

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pandas as pd
import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as ws
from matplotlib.colors import to_hex

from study.analysis import load_tables, summary
from study.config import TrackerConfig, chosen
from study.errors import StudyError, one_line
from study.figures.selection import DrawnRule
from study.figures.style import shade
from study.report import draw_figures
from study.store import load_measured, load_records, write_output, write_table
from study.tracking.runs import norm_of, silenced, start_run
from study.vocabulary.quantities import GRADIENT_NORM, MODEL_WIDE, SITES, UNIONS

SUMMARY = "summary"
"""The job type of that run. The runs of cells have their rule."""
COLUMNS = ["optimizer", "rule", "curve", "quantity", "step", "estimate", "predicted", "verdict"]
"""Columns of :func:`study.analysis.summary` in the run's table of exponents."""


def open_workspace(study_dir: Path, plots: Path, notify: Callable[[str], None]) -> str:
    """Publish the study and save its workspace. Returns its address or, if it can't be saved, the
    path of ``workspace.json``."""
    tracker = tracker_of(study_dir)
    if tracker is None:
        raise StudyError(f"{study_dir} has no W&B runs: train it with tracker=wandb")
    publish(study_dir, plots, tracker, notify)
    view = workspace(study_dir, tracker)
    wandb = silenced()
    try:
        if not wandb.login(prompt=False, verify=False):
            raise ValueError("no API key: run `wandb login`")
        view.entity = tracker.entity or wandb.Api().default_entity
        return str(view.save().url)
    except Exception as error:  # W&B raises many types: no key, no network, no such project.
        path = study_dir / "workspace.json"
        write_output(path, json.dumps(view._spec, indent=2) + "\n")
        notify(f"could not save the workspace to W&B ({one_line(error)}): wrote it to {path}")
        return str(path)


def workspace(study_dir: Path, tracker: TrackerConfig) -> ws.Workspace:
    tables = load_measured(study_dir)
    study, ranks = study_dir.resolve().name, sorted(tables.cells["rank"].unique())
    pairs = dict.fromkeys(zip(tables.cells["scaling"], tables.cells["rank"], strict=True))
    return ws.Workspace(
        entity=tracker.entity or "",
        project=tracker.project or "",
        name=f"{study}: LoRA against rsLoRA",
        sections=_sections(tables.probes, tracker),
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Metric("Group") == study, ws.Metric("JobType") != SUMMARY),
            groupby=[ws.Config("adapter.scaling"), ws.Config("adapter.rank")],
            group_colors={
                ws.GroupPath(scaling, f"{rank:.0f}"): to_hex(
                    shade(DrawnRule.of(scaling, 0.0), rank, ranks)
                )
                for scaling, rank in pairs
            },
        ),
    )


def _sections(probes: pd.DataFrame, tracker: TrackerConfig) -> list[ws.Section]:
    """Training, metrics against rank, and one section per tracked site that was probed."""

    def line(metric: str) -> panels.LinePlot:
        return panels.LinePlot(title=metric, y=[metric], log_y=True)

    def by_kind(site: str, kind: str) -> panels.LinePlot:
        # A name below its block is the kind, or a path that ends in the kind.
        regex = rf"^{norm_of(site)}/(block_\d+/)?(.*\.)?{re.escape(kind)}$"
        title = f"{site}: {kind}"
        return panels.LinePlot(title=title, metric_regex=regex, log_y=True, aggregate=True)

    def against_rank(metric: str) -> panels.ScatterPlot:
        rank, last = panels.Config("adapter.rank"), panels.SummaryMetric(metric)
        title = f"{metric} against rank"
        return panels.ScatterPlot(title=title, x=rank, y=last, log_x=True, log_y=True)

    tracked = chosen("tracker.sites", tracker.sites, SITES)
    probed = [site for site in tracked if (probes["site"] == site).any()]
    sites = sorted(probed, key=lambda site: site != GRADIENT_NORM.site)  # The gradient comes first.
    kinds = [str(kind) for kind in probes["kind"].drop_duplicates() if kind != MODEL_WIDE]
    model_wide = [f"{norm_of(site)}/{MODEL_WIDE}" for site in sites if site in UNIONS]
    plots = {
        "training": [line(name) for name in ("loss", "eval_loss", "grad_norm")],
        "against rank": [against_rank(name) for name in ("loss", *model_wide)],
        **{site: [by_kind(site, kind) for kind in kinds] for site in sites},
    }
    return [ws.Section(name, those, is_open=True) for name, those in plots.items()]


def tracker_of(study_dir: Path) -> TrackerConfig | None:
    """The tracker settings of the last tracked cell, or None. W&B's files go to ``study_dir``."""
    records = sorted(load_records(study_dir), key=lambda record: record.get("started") or "")
    configs = [record["config"].get("tracker") for record in records]
    tracked = [c for c in configs if isinstance(c, dict) and c.get("name") == "wandb"]
    if not tracked:
        return None
    last, names = tracked[-1], {field.name for field in fields(TrackerConfig)}
    known = {key: value for key, value in last.items() if key in names}
    return TrackerConfig(**known | {"dir": str(study_dir)})


def publish(
    study_dir: Path, plots: Path, tracker: TrackerConfig, notify: Callable[[str], None]
) -> None:
    """Analyze, draw and send. An error becomes one line for ``notify``."""
    try:
        _send(study_dir, plots, tracker, notify)
    except StudyError as error:  # For example, only one rank: nothing to fit.
        notify(f"nothing published to W&B: {error}")
    except Exception as error:  # W&B raises many types; the results on disk are complete.
        notify(f"could not publish exponents and figures to W&B ({one_line(error)})")
        return
    if tracker.mode == "offline":
        runs = Path(tracker.dir or ".") / "wandb" / "offline-run-*"
        notify(f"W&B is offline. To upload the runs: wandb sync {runs}")


def _send(
    study_dir: Path, plots: Path, tracker: TrackerConfig, notify: Callable[[str], None]
) -> None:
    wandb = silenced()
    study = study_dir.resolve().name
    accepted = re.sub(r"[^a-zA-Z0-9_.-]", "_", study)[:80]  # by W&B
    notify("analyzing the cells ...")
    tables = load_tables(study_dir)
    notify("drawing the figures ...")
    figures = wandb.Artifact(f"{accepted}-figures", type="figures")
    for path in draw_figures(tables, plots):
        figures.add_file(str(path))
    exponents = wandb.Artifact(f"{accepted}-exponents", type="exponents")
    exponents.add_file(str(write_table(study_dir / "exponents.parquet", tables.exponents)))
    run = start_run(tracker, name=f"{study}: exponents and figures", group=study, job_type=SUMMARY)
    rows = summary(tables.exponents)
    for step in sorted(rows["step"].unique()):
        here = rows[rows["step"] == step].itertuples()
        run.log(
            {f"exponent/{row.optimizer} {row.rule}/{row.quantity}": row.exponent for row in here},
            step=int(step),
        )
    run.log({"exponents": wandb.Table(dataframe=rows[COLUMNS].astype(object))})
    run.log_artifact(exponents)
    run.log_artifact(figures)
    run.finish()
