"""The command ``study power``: how many seeds each expectation needs, from a pilot."""

import math
from pathlib import Path

import click
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from study.analysis import load_tables
from study.analysis.grouping import seed_numbers
from study.analysis.power import MOST_SEEDS, seeds_needed
from study.cli.group import STUDY_DIR, cli
from study.config.expectations import read_entries
from study.errors import StudyError, printable
from study.report.expected import compared_row
from study.report.provenance import records_of, total_seconds


@cli.command()
@STUDY_DIR
@click.option(
    "--for",
    "experiment",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The file of an experiment, whose expectations count instead of the pilot's own.",
)
def power(study_dir: Path, experiment: Path | None) -> None:
    """Print how many seeds each expectation needs for a verdict with 80 % power.

    RESULTS/NAME is a pilot of at least three seeds.
    """
    tables = load_tables(study_dir)
    records = records_of(study_dir, tables)
    stated = [record.get("expects", []) for record in records]
    if experiment:
        stated = [yaml.safe_load(experiment.read_text()).get("expects", [])]
    found = seeds_needed(read_entries(max(stated, key=len, default=[])), tables)
    if not found:
        raise StudyError(
            f"{study_dir} has no expectation with three seeds: give the file of an experiment "
            "with --for, or train more seeds"
        )
    seeds = seed_numbers(tables.cells).max() + 1
    hours = total_seconds(tables.cells, records) / 3600 / seeds
    table = Table("expectation", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for head in ("off", "sd", "tolerance", "if exact", "as here", "hours"):
        table.add_column(f" {head}", justify="right", no_wrap=True)
    for need in found:
        name = "primary test"
        if need.row:
            row = compared_row(need.row)
            step = f"step {row['step']}" if row["step"] else ""
            words = row["optimizer, rule"], row["quantity"], need.row.expectation.what, step
            name = printable(", ".join(filter(None, words)))
        numbers = (f"{value:.3g}" for value in (need.off, need.sd, need.tolerance))
        exact = "hopeless" if math.isnan(need.if_exact) else f"{need.if_exact:.0f}"
        here = f"> {MOST_SEEDS}", ""
        if not math.isnan(need.as_pilot):
            here = f"{need.as_pilot:.0f}", f"{need.as_pilot * hours:.2g}"
        table.add_row(name, *numbers, exact, *here)
    Console().print(table)
    click.echo(
        f"{seeds} seeds here, {hours:.2g} hours a seed. if exact: the seeds that show agreement if "
        "theory is exact; as here: those that decide if the truth is as measured here; hours: of "
        "the latter. hopeless: an exact theory would not be shown to agree with "
        f"{MOST_SEEDS} seeds, so widen the tolerance or measure more closely."
    )
