"""The command ``study rates``: the best learning rates of a study, and those it lacks."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console

from study.analysis.rates import exponents_against_rho, missing_rates, rates_by_horizon
from study.analysis.terminal import render_best, render_horizons
from study.cli.cell_overrides import overrides_of
from study.cli.group import STUDY_DIR, cli
from study.errors import StudyError
from study.store import StudyTables, read_record
from study.store.tables import load_measured

ALONE = ("optimizer.lr", "seed", "data.seed")
"""The keys that a line of ``--refine`` sweeps over."""


@cli.command()
@STUDY_DIR
@click.option(
    "--refine", is_flag=True, help="Print the commands that train the missing rates instead."
)
def rates(study_dir: Path, refine: bool) -> None:
    """Print how the best learning rate changes with rank.

    At every horizon, which is a step with a held-out loss: the best rate of each rank, its exponent
    with rank, and rho, the motion of A beside its init. With --refine: a line per rule and rank
    that trains rates in steps of 2 around its best one, or beyond it at an edge.
    """
    tables = load_measured(study_dir)
    if tables.cells["lr"].nunique() < 2:
        raise StudyError(
            f"{study_dir} has one learning rate: sweep over some, such as optimizer.lr=1e-4,2e-4"
        )
    if refine:
        lines = list(_refining(tables, study_dir))
        for line in lines:
            click.echo(line)
        if not lines:
            click.echo("no rate is missing: steps of 2 around every best rate", err=True)
        return
    _print(tables)


def _print(tables: StudyTables) -> None:
    found = rates_by_horizon(tables.cells, tables.metrics, tables.probes)
    if found.empty:
        raise StudyError(
            "no rank was run at two constant learning rates by all of its seeds: see study status"
        )
    Console().print(render_best(found))
    Console().print(render_horizons(exponents_against_rho(found)))


def _refining(tables: StudyTables, study_dir: Path) -> Iterator[str]:
    """A command per rule and rank that lacks rates."""
    for missing in missing_rates(tables.cells, tables.metrics, tables.probes):
        record = read_record(study_dir / "cells" / missing.cell_id)
        assert record is not None  # its tables were just read
        own = overrides_of(record["config"], study_dir.resolve().name, ALONE)
        folder = str(study_dir.parent)
        place = [] if folder == "results" else [f"results_dir={folder}"]
        yield shlex.join(["study", "train", "-m", *own, *place, *missing.swept])
