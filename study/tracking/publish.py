"""What a study shows, to W&B: the exponent table and the figures as artifacts of one run beside the cells'.

A sweep publishes when it ends, ``study dashboard --wandb`` when it is asked: whoever has all cells at hand.
"""

from collections.abc import Callable
from pathlib import Path

from study.analysis import summary
from study.config import TrackerConfig
from study.errors import StudyError
from study.report.write import current_figures, current_tables
from study.store import load_records
from study.tracking.runs import WandbRuns, one_line, start_run

SUMMARY = "summary"
"""The type of job that the run is, where those of cells are packs."""


def tracker_of(study_dir: Path) -> TrackerConfig | None:
    """How the study was tracked, as the last cell that was tells; None where none was."""
    records = sorted(load_records(study_dir), key=lambda record: record["started"])
    tracked = [record["config"].get("tracker", {}) for record in records]
    last = next((config for config in reversed(tracked) if config.get("name") == "wandb"), None)
    return None if last is None else TrackerConfig(**last)


def publish(
    study_dir: Path, plots: Path, tracker: TrackerConfig, say: Callable[[str], None]
) -> None:
    """Analyse and draw what is not up to date, and send it; what fails is said in one line."""
    if WandbRuns.given_up:
        return
    try:
        _send(study_dir, plots, tracker, say)
    except StudyError as error:  # one rank only: there is nothing to fit
        say(f"nothing published to W&B: {error}")
    except Exception as error:  # whatever it was, the study is trained
        WandbRuns.given_up = True
        say(f"exponents and figures are not in W&B ({one_line(error)})")
        return
    if tracker.mode == "offline":
        say(
            f"W&B is offline: wandb sync {Path(tracker.dir or '.') / 'wandb'}/offline-run-* sends the runs"
        )


def _send(study_dir: Path, plots: Path, tracker: TrackerConfig, say: Callable[[str], None]) -> None:
    import wandb

    study = study_dir.resolve().name
    tables = current_tables(study_dir, say)
    pictures = current_figures(study_dir, tables, plots, say)
    exponents = wandb.Artifact(f"{study}-exponents", type="exponents")
    exponents.add_file(str(study_dir / "exponents.parquet"))
    figures = wandb.Artifact(f"{study}-figures", type="figures")
    for picture in pictures:
        for path in sorted(plots.glob(f"{picture.name}.*")):  # as PNG and PDF
            figures.add_file(str(path))
    run = start_run(tracker, name=f"{study}: exponents and figures", group=study, job_type=SUMMARY)
    rows = summary(tables.exponents)
    for step in sorted(rows["step"].unique()):
        here = rows[rows["step"] == step].itertuples()
        run.log(
            {f"exponent/{row.optimizer} {row.rule}/{row.quantity}": row.exponent for row in here},
            step=int(step),
        )
    run.log_artifact(exponents)
    run.log_artifact(figures)
    run.finish()
