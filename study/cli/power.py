"""The command ``study power``: how many seeds each expectation needs, from a pilot."""

import math
from collections.abc import Iterator
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
from study.config.compose import CONF
from study.config.expectations import Entry, check_entries, read_entries, read_entry
from study.errors import StudyError, printable
from study.report.expected import compared_row
from study.report.provenance import records_of, total_seconds


@cli.command()
@STUDY_DIR
@click.option(
    "--for",
    "experiment",
    metavar="EXPERIMENT",
    help="An experiment, or its file, whose expectations count instead of the pilot's own.",
)
def power(study_dir: Path, experiment: str | None) -> None:
    """Print how many seeds each expectation needs for a verdict with 80 % power.

    RESULTS/NAME is a pilot of at least three seeds.
    """
    tables = load_tables(study_dir)
    records = records_of(study_dir, tables)
    held = (read_entries(record.get("expects", [])) for record in records)
    entries = stated(experiment) if experiment else max(held, key=len, default=[])
    found = seeds_needed(entries, tables) if entries else []
    if not found:
        raise StudyError(
            f"{study_dir} has no expectation with three seeds: name an experiment with --for, or "
            "train more seeds"
        )
    seeds = int(seed_numbers(tables.cells).max()) + 1
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
        table.add_row(name, *numbers, *_needs(need.if_exact, need.as_pilot, hours))
    Console().print(table)
    click.echo(
        f"{seeds} seeds here, {hours:.2g} hours a seed. if exact: the seeds that show agreement if "
        "theory is exact; as here: those that decide if the truth is as measured here; hours: of "
        "the latter. hopeless: an exact theory would not be shown to agree with "
        f"{MOST_SEEDS} seeds, so widen the tolerance or measure more closely."
    )


def _needs(if_exact: float, as_pilot: float, hours: float) -> Iterator[str]:
    yield "hopeless" if math.isnan(if_exact) else f"{if_exact:.0f}"
    yield f"> {MOST_SEEDS}" if math.isnan(as_pilot) else f"{as_pilot:.0f}"
    yield "" if math.isnan(as_pilot) else f"{as_pilot * hours:.2g}"


def stated(experiment: str) -> list[Entry]:
    """The entries of an experiment of ``conf/experiment``, or of a file. Raises
    :class:`StudyError` if there is no such file, or an entry is wrong."""
    path = CONF / "experiment" / f"{experiment}.yaml"
    path = path if path.is_file() else Path(experiment)
    if not path.is_file():
        raise StudyError(f"no experiment {experiment}: give one of conf/experiment, or a file")
    entries = yaml.safe_load(path.read_text()).get("expects") or []
    found = [read_entry(entry, f"expects[{n}].") for n, entry in enumerate(entries)]
    check_entries(found)
    return found
