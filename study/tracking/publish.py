"""Publish a study's exponent table and figures to W&B, as artifacts of one extra run."""

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from study.analysis.derived import load_tables
from study.analysis.verdicts import summary
from study.config import TrackerConfig
from study.errors import StudyError, one_line
from study.report import draw_figures
from study.store import load_records, write_table
from study.tracking.runs import start_run

SUMMARY = "summary"
"""The job type of that run. The runs of cells have their rule."""
COLUMNS = ["optimizer", "rule", "curve", "quantity", "step", "estimate", "predicted", "verdict"]
"""Columns of :func:`study.analysis.summary` in the run's table of exponents."""


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
    import wandb

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
