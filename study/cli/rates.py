"""The command ``study rates``: the best learning rates of a study, and those it lacks."""

import math
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from study.analysis.advice import alone, committed
from study.analysis.answers import rate_table
from study.analysis.law import Setting
from study.analysis.losses import OF_A_RULE, final_losses
from study.analysis.rates import exponents_against_rho, missing_rates, rates_by_horizon
from study.cli.group import STUDY_DIR, cli, print_tables, say, tables_as
from study.cli.tables import print_table
from study.cli.training import train
from study.config.overrides import overrides_of
from study.config.values import written
from study.errors import StudyError, command_line
from study.report.sections import horizon_table
from study.store import StudyTables, find_cell
from study.store.tables import load_measured

ALONE = ("optimizer.lr", "seed", "data.seed")
"""The keys that a line of ``--refine`` sweeps over."""
MOST_ROUNDS, FARTHEST = 8, 100.0
"""Limits of ``--search``. New rates are within this factor of those that the study had."""


@cli.command()
@STUDY_DIR
@click.option(
    "--refine", is_flag=True, help="Print the commands that train the missing rates instead."
)
@click.option("--search", is_flag=True, help="Train the missing rates, until none is missing.")
@tables_as
def rates(study_dir: Path, refine: bool, search: bool, output: str | None) -> None:
    """Print for each horizon the best rate of each rank, its exponent with rank, and rho, the
    relative motion of A from its init. A horizon is a step with a held-out loss, or the end of a
    run whose rate has a schedule. --refine prints a command per rule and rank that trains rates in
    steps of 2 around the best one, or beyond an edge. --search trains them and repeats, at most 8
    times. A rank with one rate starts at the rate of the law of study advise and twice that.
    """
    tables = load_measured(study_dir)
    if tables.cells["lr"].nunique() < 2 and not (search or refine):
        raise StudyError(f"{study_dir} has one learning rate: sweep over optimizer.lr=1e-4,2e-4")
    if search:
        tables = _searched(tables, study_dir)
    if refine:
        lines = [shlex.join(words) for words in _refining(tables, study_dir)]
        click.echo("\n".join(lines), nl=bool(lines))
        if not lines:
            say("no rate is missing: steps of 2 around every best rate")
        return
    found = rates_by_horizon(tables.cells, tables.metrics, tables.probes)
    if found.empty:
        raise StudyError("no rank was run at two learning rates by all of its seeds")
    exponents = exponents_against_rho(found)
    if output:
        print_tables(output, rates=found, exponents=exponents)
        return
    steps = found["horizon"].max()
    last = replace(tables, rates=found[found["horizon"] == steps])
    print_table(rate_table(last)._replace(title=f"Best learning rates after {steps:g} steps"))
    print_table(horizon_table(exponents))


def _searched(tables: StudyTables, study_dir: Path) -> StudyTables:
    """Run the commands of :func:`_refining`, and say what was not trained."""
    had, tried = len(tables.cells), tables.cells["lr"]
    within = (tried.min() / FARTHEST, tried.max() * FARTHEST)
    for _ in range(MOST_ROUNDS):
        commands = list(_refining(tables, study_dir, within))
        for words in commands:
            say(shlex.join(words))
            click.get_current_context().invoke(train, arguments=tuple(words[2:]))
        if not commands:
            break
        tables = load_measured(study_dir)
    runs = final_losses(tables.cells, tables.metrics)
    grid = runs["lr"].nunique() * len(runs.drop_duplicates([*OF_A_RULE, "rank", "seed"]))
    say(f"trained {len(tables.cells) - had} cells; all of these rates at all ranks: {grid - had}")
    steps = tables.cells["steps_done"].sum()
    say(f"the study has {steps:.0f} steps; the grid has {grid * tables.cells['steps'].mean():.0f}")
    if list(_refining(tables, study_dir)):
        limits = f"{MOST_ROUNDS} rounds, or {FARTHEST:g} times beyond the first rates"
        again = command_line("rates", study_dir, "--refine")
        say(f"--search stops after {limits}: {again} prints the others")
    return tables


def by_law(run: Setting) -> float:
    """The best rate of a run, as the law expects it."""
    return math.exp(alone(run.facts(), run.model, committed())[0])


def _refining(
    tables: StudyTables, study_dir: Path, within: tuple[float, float] = (0.0, math.inf)
) -> Iterator[list[str]]:
    parent = study_dir.resolve().parent
    place = [] if parent == Path("results").resolve() else [f"results_dir={written(str(parent))}"]
    found = missing_rates(tables.cells, tables.metrics, within, by_law)
    for missing in found:
        _, record = find_cell(study_dir, missing.cell_id)
        if "peft" in record:
            each = (f"rank {one.rank:g} at {' '.join(one.swept)}" for one in found)
            raise StudyError(f"{study_dir} is of your own loop: train there {'; '.join(each)}")
        own = overrides_of(record["config"], study_dir.resolve().name, ALONE)
        yield ["study", "train", "-m", *own, *place, *missing.swept]
