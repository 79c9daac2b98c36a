"""``study dashboard --wandb RESULTS/NAME``: a W&B workspace that compares LoRA with rsLoRA.

One section per site, one panel per kind of layer. Runs are grouped by rule and rank, so each line
is one rank of one rule, averaged over seeds and layers. Rules have their colours of the figures.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as ws
from matplotlib.colors import to_hex

from study.config import TrackerConfig, chosen
from study.errors import StudyError, one_line
from study.figures.selection import DrawnRule
from study.figures.style import shade
from study.store import load_measured, write_output
from study.tracking.publish import SUMMARY, publish, tracker_of
from study.tracking.runs import norm_of, silenced
from study.vocabulary.quantities import GRADIENT_NORM, MODEL_WIDE, SITES, UNIONS


def open_workspace(study_dir: Path, plots: Path, notify: Callable[[str], None]) -> str:
    """Publish the study and save its workspace. Returns its address, or the path of its file."""
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
    """The workspace of a study whose runs were tracked with ``tracker``. Sends nothing."""
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
