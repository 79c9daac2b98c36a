"""The command ``study rates``: the best learning rates of a study, and those it lacks."""

import math
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pandas as pd
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from study.analysis.advice import alone, committed
from study.analysis.law import Setting
from study.analysis.losses import OF_A_RULE, final_losses
from study.analysis.rates import exponents_against_rho, missing_rates, rates_by_horizon
from study.cli.group import STUDY_DIR, cli, print_tables, say, tables_as
from study.cli.tables import print_table
from study.cli.training import train
from study.config.compose import CONF
from study.errors import StudyError, command_line
from study.integrations.configs.writing import written
from study.report.answer import rate_table
from study.report.sections import horizon_table
from study.store import StudyTables, find_cell
from study.store.tables import load_measured
from study.vocabulary.scaling import POWER

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
    times. A rank with one rate starts at the rate of the law (docs/law.md) and twice that.
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


NAMED_GROUPS = ("model", "data", "optimizer")
"""The groups of ``conf/`` with a file per value of ``name``."""
NOT_TOLD = {
    *("name", "results_dir", "plots_dir", "device", "tracker", "checkpoint", "expects", "pack"),
    *("train.shard", "train.checkpointing"),
}
"""Keys and groups that do not change the numbers of a cell, or belong to a machine."""


def overrides_of(config: Mapping[str, Any], study: str, varied: Collection[str]) -> list[str]:
    """The overrides for a cell's recorded ``config``, without the keys ``varied``.

    If ``conf/`` has an experiment of the study's name, they begin with it and set every key that it
    sweeps over. Keys that the files of its data set and optimizer lack are left out.
    """
    is_experiment = (CONF / "experiment" / f"{study}.yaml").is_file()
    said = [f"experiment={study}"] if is_experiment else [f"name={written(study)}"]
    own = {k: v for k, v in leaves(config).items() if NOT_TOLD.isdisjoint((k, k.split(".")[0]))}
    own = {k: v for k, v in own.items() if v is not None or k != "adapter.crossover"}
    if own["adapter.scaling"] == POWER:
        p = own["adapter.exponent"]
        own |= {"adapter.scaling": int(p) if p == int(p) else p, "adapter.exponent": None}
    with initialize_config_dir(str(CONF), version_base=None):
        usual = compose("config", said, return_hydra_config=True)
        swept = {str(key) for key in usual.hydra.sweeper.get("params") or {}}
        for group in NAMED_GROUPS:
            if group in swept or config[group]["name"] != usual[group]["name"]:
                said.append(f"{group}={config[group]['name']}")
        axes = [f"{key}={written(own[key])}" for key in own if key in swept]
        before = leaves(OmegaConf.to_container(compose("config", said + axes), resolve=True))
    return said + [
        f"{key}={written(value)}"
        for key, value in own.items()
        if key not in varied and (key in swept or before.get(key, value) != value)
    ]


def leaves(config: Any) -> dict[str, Any]:
    """Every dotted key of a nested configuration with its value. A list is one value."""
    [flat] = pd.json_normalize(config).to_dict("records")
    return {str(key): value for key, value in flat.items()}
