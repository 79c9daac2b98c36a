"""Publish a study's exponent table and figures to W&B, as artifacts of one extra run.

A sweep publishes when it ends. ``study dashboard --wandb`` publishes on request.
"""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from study.analysis import load_tables, summary
from study.analysis.wording import BRACKETS, bend_text, factor_text, number_text
from study.config import TrackerConfig
from study.config.types import TRACKER_MODES
from study.errors import StudyError, one_line
from study.report import draw_figures
from study.store import load_records, write_table
from study.tracking.names import artifact_name
from study.tracking.runs import start_run

SUMMARY = "summary"
"""The job type of that run. The runs of cells have their rule."""


TABLE_COLUMNS = (
    *("optimizer", "rule", "quantity", "step", "exponent", "brackets", "factor", "theory"),
    *("verdict", "bent"),
)
"""The columns of the run's table of exponents: the report's numbers and words."""


def tracker_of(study_dir: Path) -> TrackerConfig | None:
    """The tracker settings of the last tracked cell; None if no cell was tracked.

    W&B's files go to ``study_dir``, not to a folder that a record names. Raises
    :class:`StudyError` if the record's other settings can't be used.
    """
    records = sorted(load_records(study_dir), key=lambda record: record.get("started") or "")
    configs = [record["config"].get("tracker") for record in records]
    tracked = [c for c in configs if isinstance(c, dict) and c.get("name") == "wandb"]
    if not tracked:
        return None
    last = tracked[-1] | {"dir": str(study_dir)}
    names = {field.name for field in fields(TrackerConfig)}
    texts = [last.get("project"), last.get("entity")]
    usable = last.get("mode") in TRACKER_MODES and all(isinstance(t, str | None) for t in texts)
    if not (usable and last.keys() <= names):
        raise StudyError(f"the tracker settings in the records of {study_dir} are damaged: {last}")
    return TrackerConfig(**last)


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
    notify("analyzing the cells ...")
    tables = load_tables(study_dir)
    notify("drawing the figures ...")
    drawn = list(draw_figures(tables, plots, left_out=lambda line: None))
    exponents = wandb.Artifact(artifact_name(study, "exponents"), type="exponents")
    exponents.add_file(str(write_table(study_dir / "exponents.parquet", tables.exponents)))
    figures = wandb.Artifact(artifact_name(study, "figures"), type="figures")
    for path in drawn:
        figures.add_file(str(path))
    run = start_run(tracker, name=f"{study}: exponents and figures", group=study, job_type=SUMMARY)
    rows = summary(tables.exponents)
    for step in sorted(rows["step"].unique()):
        here = rows[rows["step"] == step].itertuples()
        run.log(
            {f"exponent/{row.optimizer} {row.rule}/{row.quantity}": row.exponent for row in here},
            step=int(step),
        )
    run.log({"exponents": wandb.Table(list(TABLE_COLUMNS), _table(rows))})
    run.log_artifact(exponents)
    run.log_artifact(figures)
    run.finish()


def _table(rows: pd.DataFrame) -> list[list[str | int]]:
    """The rows of a summary under :data:`TABLE_COLUMNS`."""
    entries: list[Any] = list(rows.itertuples(index=False))
    return [
        [
            *(str(row.optimizer), ", ".join(filter(None, (row.rule, row.curve))), row.quantity),
            *(int(row.step), row.estimate, BRACKETS.get(row.interval, "")),
            *(factor_text(row.factor), number_text(row.predicted)),
            *(str(row.verdict), bend_text(row)),
        ]
        for row in entries
    ]
