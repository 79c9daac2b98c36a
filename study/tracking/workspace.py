"""The W&B workspace of a study, as code: LoRA against rsLoRA, a section a site, a panel a kind of layer.

``study dashboard --wandb RESULTS/NAME``. Runs are grouped by rule and rank, so that a line is a rank of a rule over its
seeds and layers of one kind; rules have the colours that they have in the figures.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.colors import to_hex

from study.config import TrackerConfig, chosen
from study.errors import StudyError
from study.figures.selection import Rule
from study.figures.style import shade
from study.store import load_tables
from study.tracking.names import norm_of
from study.tracking.publish import SUMMARY, publish, tracker_of
from study.tracking.runs import one_line, silenced
from study.vocabulary.quantities import MODEL_WIDE, SITES

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace


def open_workspace(study_dir: Path, plots: Path, say: Callable[[str], None]) -> str:
    """Publish the study and save its workspace to W&B; where the workspace is, an address or a file.

    Without an account to save to the specification is written to ``workspace.json`` in the study's folder, and ``say``
    is told why. Raises :class:`StudyError` where there is no study, it has no W&B runs, or W&B is not installed.
    """
    try:
        import wandb_workspaces.workspaces  # noqa: F401
    except ImportError:
        raise StudyError(
            "a W&B workspace needs wandb-workspaces: pip install 'study[wandb]'"
        ) from None
    tracker = tracker_of(study_dir)
    if tracker is None:
        raise StudyError(f"{study_dir} has no runs in W&B: train it with tracker=wandb")
    publish(study_dir, plots, tracker, say)
    view = workspace(study_dir, tracker)
    try:
        return _saved(view, tracker)
    except Exception as error:  # no key, no network, no such project: whatever W&B raises
        path = study_dir / "workspace.json"
        path.write_text(json.dumps(view._spec, indent=2) + "\n")
        say(f"the workspace is not in W&B ({one_line(error)}): its specification is in {path}")
        return str(path)


def workspace(study_dir: Path, tracker: TrackerConfig) -> "Workspace":
    """The workspace of a study whose runs ``tracker`` describes. Nothing is sent."""
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as ws

    tables = load_tables(study_dir)
    probes, ranks = tables.probes, sorted(tables.cells["rank"].unique())
    sent = [
        site
        for site in chosen("tracker.sites", tracker.sites, SITES)
        if (probes["site"] == site).any()
    ]
    sites = sorted(sent, key=lambda site: site != "adapter_grad")  # the gradient first
    layers = probes[probes["layer"] != MODEL_WIDE]
    kinds = [str(kind) for kind in layers["kind"].drop_duplicates()]

    def colour(scaling: str, rank: float) -> str:
        red, green, blue, _ = shade(Rule.of(scaling, 0.0), rank, ranks)
        return to_hex((red, green, blue))

    def line(metric: str) -> panels.LinePlot:
        return panels.LinePlot(title=metric, y=[metric], log_y=True)

    def by_kind(site: str, kind: str) -> panels.LinePlot:
        # A name below its block is the kind, or ends in it where a block has several layers of that kind.
        regex = rf"^{norm_of(site)}/(block_\d+/)?(.*\.)?{re.escape(kind)}$"
        return panels.LinePlot(
            title=f"{site}: {kind}", metric_regex=regex, log_y=True, aggregate=True
        )

    def against_rank(metric: str) -> panels.ScatterPlot:
        rank, last = panels.Config("adapter.rank"), panels.SummaryMetric(metric)
        return panels.ScatterPlot(
            title=f"{metric} against rank", x=rank, y=last, log_x=True, log_y=True
        )

    model_wide = [
        f"{norm_of(site)}/{MODEL_WIDE}"
        for site in sites
        if site in ("adapter_grad", "adapter_update")
    ]
    sections = [
        ws.Section(
            "training", [line(name) for name in ("loss", "eval_loss", "grad_norm")], is_open=True
        ),
        ws.Section(
            "against rank", [against_rank(name) for name in ("loss", *model_wide)], is_open=True
        ),
        *(
            ws.Section(site, [by_kind(site, kind) for kind in kinds], is_open=True)
            for site in sites
        ),
    ]
    study = study_dir.resolve().name
    return ws.Workspace(
        entity=tracker.entity or "",
        project=tracker.project or "",
        name=f"{study}: LoRA against rsLoRA",
        sections=sections,
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Metric("Group") == study, ws.Metric("JobType") != SUMMARY),
            groupby=[ws.Config("adapter.scaling"), ws.Config("adapter.rank")],
            group_colors={
                ws.GroupPath(scaling, f"{rank:g}"): colour(scaling, rank)
                for scaling, rank in zip(tables.cells["scaling"], tables.cells["rank"], strict=True)
            },
        ),
    )


def _saved(view: "Workspace", tracker: TrackerConfig) -> str:
    wandb = silenced()
    if not wandb.login(prompt=False, verify=False):
        raise ValueError("no API key, run `wandb login`")
    view.entity = tracker.entity or wandb.Api().default_entity
    return str(view.save().url)
