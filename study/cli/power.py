"""``study power``: how many seeds each expectation needs, from a pilot."""

import math
from pathlib import Path

import click
import pandas as pd

from study.analysis.derived import load_tables
from study.analysis.grouping import seed_numbers
from study.analysis.power import MOST_SEEDS, seeds_needed
from study.cli.group import STUDY_DIR, cli
from study.cli.texts import print_texts
from study.config.expectations import check_entries, read_entries, read_entry
from study.errors import StudyError
from study.integrations.configs import load
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
    """RESULTS/NAME is a pilot of at least three seeds. A verdict has 80 % power."""
    tables = load_tables(study_dir)
    records = records_of(study_dir, tables)
    stated = (read_entries(record.get("expects", [])) for record in records)
    entries = max(stated, key=len, default=[])
    if experiment:
        asked = enumerate(load(experiment).get("expects") or [])
        entries = [read_entry(entry, f"expects[{n}].") for n, entry in asked]
        check_entries(entries)
    found = seeds_needed(entries, tables)
    if not found:
        raise StudyError(f"no expectation in {study_dir} has three seeds: use --for, or train")
    seeds = len(set(seed_numbers(tables.cells)))
    hours = total_seconds(tables.cells, records) / 3600 / seeds
    rows = []
    for need in found:
        name = "primary test"
        if need.row:
            row = compared_row(need.row)
            step = f"step {row['step']}" if row["step"] else ""
            words = row["optimizer, rule"], row["quantity"], need.row.expectation.what, step
            name = ", ".join(filter(None, words))
        numbers = {key: f"{getattr(need, key):.3g}" for key in ("off", "sd", "tolerance")}
        exact = "hopeless" if math.isnan(need.if_exact) else f"{need.if_exact:.0f}"
        cost = {"if exact": exact, "as here": f"> {MOST_SEEDS}", "hours": ""}
        if not math.isnan(need.as_pilot):
            cost |= {"as here": f"{need.as_pilot:.0f}", "hours": f"{need.as_pilot * hours:.2g}"}
        rows.append({"expectation": name, **numbers, **cost})
    print_texts("Seeds for 80 % power", pd.DataFrame(rows))
    click.echo(
        f"{seeds} seeds here, {hours:.2g} hours a seed. if exact: to show that an exact theory "
        f"agrees (hopeless: > {MOST_SEEDS}); as here: to decide if the truth is as measured."
    )
    for need, row in zip(found, rows, strict=True):
        if need.tolerance < need.least:  # because of the error of the grid alone
            raise StudyError(
                f"no number of seeds decides this plan. {row['expectation']}: all seeds share the "
                f"error of the pilot's rates. It needs a tolerance of {need.least:.2g} and has "
                f"{need.tolerance:g}. Use rates in finer steps, or a wider tolerance"
            )
