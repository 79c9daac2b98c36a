"""The console script ``study``: train, status, analyze, distances, figures, dashboard, report, fetch.

``study train`` is a Hydra application and takes its arguments unchanged; the others are ordinary commands. What is
imported here is imported by ``study --help``, so every command imports its own part of the house.
"""

import os
import sys
from pathlib import Path

import click

from study import __version__
from study.errors import StudyError

STUDY_DIR = click.argument("study_dir", type=click.Path(path_type=Path), metavar="RESULTS/NAME")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="study")
def cli() -> None:
    """How does an adapter's scaling behave as its rank grows?

    \b
    study train experiment=quick       train the ranks and rules of a study
    study analyze results/quick        fit the exponents and say what they show
    study figures results/quick        draw the figures from the tables
    study report  results/quick        all of it on one page
    study dashboard results/quick      every layer, live in a browser
    """


@cli.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train(arguments: tuple[str, ...]) -> None:
    """Train cells: a Hydra app (study train --help; -m sweeps, such as -m adapter.rank=4,8 seed=0,1)."""
    from study import hydra_app

    hydra_app.main(arguments)


@cli.command()
@STUDY_DIR
def status(study_dir: Path) -> None:
    """List the cells of a study by state."""
    from study.status import render
    from study.store import load_cells

    click.echo(render(load_cells(study_dir)))


@cli.command()
@STUDY_DIR
def analyze(study_dir: Path) -> None:
    """Fit exponents, find the p at which each quantity is stable, print the ones that matter and write every table."""
    from rich.console import Console

    from study import analysis
    from study.store import load_tables, write_derived

    tables = load_tables(study_dir)
    found = analysis.analyze(tables.cells, tables.metrics, tables.probes)
    Console().print(analysis.render_table(analysis.summary(found.exponents)))
    if len(found.stable):
        Console().print(analysis.render_stable(found.stable))
    for name, table in vars(found).items():
        click.echo(f"{len(table)} rows in {write_derived(study_dir, name, table)}")


@cli.command()
@STUDY_DIR
@click.option(
    "--rank-free",
    default="",
    metavar="RANKS",
    help="More ranks, of any size, such as 65536,1048576: rank-free runs beside the cells.",
)
def distances(study_dir: Path, rank_free: str) -> None:
    """Run the limit of infinite rank, measure how far the cells are from it and write distances.parquet."""
    from study import distances as measured
    from study.store import write_derived

    table = measured.measure_study(study_dir, _ranks(rank_free), lambda line: click.echo(line, err=True))
    path = write_derived(study_dir, "distances", table)
    for row in measured.laws(table):
        click.echo(row)
    click.echo(f"{len(table)} distances in {path}")


def _ranks(text: str) -> list[int]:
    ranks = text.split(",") if text else []
    if not all(rank.strip().isdecimal() and int(rank) > 0 for rank in ranks):
        raise StudyError(f"--rank-free={text} is no list of ranks: give whole numbers such as 65536,1048576")
    return [int(rank) for rank in ranks]


@cli.command()
@STUDY_DIR
@click.option("--to", type=click.Path(path_type=Path), help="Folder for the pictures.  [default: plots/NAME]")
def figures(study_dir: Path, to: Path | None) -> None:
    """Draw every figure that the study's tables allow, as PNG and PDF."""
    from study.figures import draw_all, save
    from study.store import load_tables

    folder = to or study_dir.parent.parent / "plots" / study_dir.name
    for name, figure in draw_all(load_tables(study_dir)):
        for path in save(figure, folder, name):
            click.echo(path)


@cli.command()
@STUDY_DIR
@click.option("--plots", type=click.Path(path_type=Path), help="Folder of the figures.  [default: plots/NAME]")
def report(study_dir: Path, plots: Path | None) -> None:
    """Write one page on a study, report.md and report.html; analyzes and draws first where that is not done."""
    from study.report import write_report

    folder = plots or study_dir.parent.parent / "plots" / study_dir.name
    for path in write_report(study_dir, folder, lambda line: click.echo(line, err=True)):
        click.echo(path)


@cli.command()
@STUDY_DIR
@click.option("--export", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write one HTML file instead.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Where to serve.  [default: any free port]")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Another than this machine's own is for all to see."
)
def dashboard(study_dir: Path, file: Path | None, port: int, host: str) -> None:
    """Look at every layer's norms in a browser, while a study trains and afterwards."""
    try:
        from study.dashboard.export import export
        from study.dashboard.server import LOCAL, serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("plotly", "starlette", "uvicorn"):
            raise
        raise StudyError(f"study dashboard needs {error.name}: pip install 'study[dashboard]'") from None

    if file is not None:
        inside, there = export(study_dir, file)
        left_out = f", {there - inside} more do not fit" if inside < there else ""
        click.echo(f"{file}: {file.stat().st_size / 1e6:.1f} MB, {inside} quantities{left_out}")
        return
    if host not in LOCAL:
        click.echo(f"study: warning: anyone who reaches {host} can read this study; there is no password", err=True)

    def ready(address: str) -> None:
        click.echo(f"{address} (Ctrl-C stops it)")
        if sys.stdout.isatty():
            click.launch(address)

    serve(study_dir, host, port, ready)


@cli.command()
@click.argument("model", type=click.Choice(["smollm2"]))
@click.option("--force", is_flag=True, help="Fetch and convert again, whatever the cache holds.")
def fetch(model: str, force: bool) -> None:
    """Fetch a base model into the user cache (STUDY_CACHE) and print where it is."""
    from study.models import fetch_smollm2

    click.echo(fetch_smollm2(force))


def main() -> None:
    """Entry point: one line and exit code 2 for a user's mistake, a traceback for ours."""
    try:
        if sys.argv[1:2] == ["-sc"]:  # Hydra's completion script calls the executable so, without the word train
            from study import hydra_app

            os.environ["COMP_LINE"] = os.environ.get("COMP_LINE", "").replace("study train", "study", 1)
            hydra_app.main(sys.argv[1:])
        else:
            cli(prog_name="study")
    except StudyError as error:
        click.echo(f"study: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo("study: interrupted; the same command goes on with the cells that are not done", err=True)
        sys.exit(130)
