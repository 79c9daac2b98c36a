"""The commands that train, time and download: ``train``, ``status``, ``bench``, ``fetch``."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import click

from study.cli.completion import complete_overrides
from study.cli.group import PASSED_ON, STUDY_DIR, cli


@cli.command(context_settings=PASSED_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, shell_complete=complete_overrides)
def train(arguments: tuple[str, ...]) -> None:
    """Train one cell, or a sweep with -m (study train --help)."""
    from study.sweeps import signals

    with signals.listen(["train", *arguments]):  # before the imports, which take a second
        from study.sweeps import sharing

        if sharing.follows():
            from study.sweeps.processes import follow

            follow()
            return
        from study.sweeps import app as hydra_app

        if sharing.count() == 1:
            hydra_app.main(arguments)
            return
        from study.sweeps.processes import leading

        with leading():
            hydra_app.main(arguments)


@cli.command()
@STUDY_DIR
@click.option(
    "--watch",
    is_flag=True,
    help="Follow all processes that train the study, until every cell is trained.",
)
def status(study_dir: Path, watch: bool) -> None:
    """List the cells of a study and their states."""
    from study.sweeps import progress

    if watch:
        progress.watch(study_dir)
    else:
        click.echo(progress.render(progress.load_status(study_dir)))


@cli.command(context_settings=PASSED_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Time training, inference and large studies."""
    # In a wheel the benchmarks are a subpackage, in a clone a package.
    package = "study.benchmarks" if find_spec("study.benchmarks") else "benchmarks"
    import_module(f"{package}.commands").main(arguments)


@cli.command()
@click.argument("model", type=click.Choice(["smollm2"]))
@click.option("--force", is_flag=True, help="Fetch and convert again, even if it is in the cache.")
def fetch(model: str, force: bool) -> None:
    """Download a base model and print its path.

    It is stored in the user cache, or in the folder STUDY_CACHE.
    """
    from study.models import fetch_smollm2

    click.echo(fetch_smollm2(force))
