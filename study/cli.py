"""The console script ``study``: train, bench, and what is read from a study or made of it.

``study train`` is a Hydra application and takes its arguments unchanged; the others are ordinary commands. What is
imported here is imported by ``study --help``, so every command imports its own part of the house.
"""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    from study.sweeps import app as hydra_app

    hydra_app.main(arguments)


@cli.command()
@STUDY_DIR
@click.option(
    "--watch",
    is_flag=True,
    help="Follow what trains, in any process, until nothing is left to train.",
)
def status(study_dir: Path, watch: bool) -> None:
    """List the cells of a study by state."""
    from study.sweeps.status import load_status, render
    from study.sweeps.watch import watch as follow

    if watch:
        follow(study_dir)
    else:
        click.echo(render(load_status(study_dir)))


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
    from study.store import write_derived
    from study.sweeps import distances as measured

    table = measured.measure_study(
        study_dir, _ranks("--rank-free", rank_free), lambda line: click.echo(line, err=True)
    )
    path = write_derived(study_dir, "distances", table)
    for row in measured.laws(table):
        click.echo(row)
    click.echo(f"{len(table)} distances in {path}")


def _ranks(option: str, text: str) -> list[int]:
    ranks = text.split(",") if text else []
    if not all(rank.strip().isdecimal() and int(rank) > 0 for rank in ranks):
        raise StudyError(
            f"{option}={text} is no list of ranks: give whole numbers such as 256,1024"
        )
    return [int(rank) for rank in ranks]


@cli.command()
@STUDY_DIR
@click.option(
    "--to", type=click.Path(path_type=Path), help="Folder for the pictures.  [default: plots/NAME]"
)
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
@click.option(
    "--plots", type=click.Path(path_type=Path), help="Folder of the figures.  [default: plots/NAME]"
)
def report(study_dir: Path, plots: Path | None) -> None:
    """Write one page on a study, report.md and report.html; analyzes and draws first where that is not done."""
    from study.report import write_report

    folder = plots or study_dir.parent.parent / "plots" / study_dir.name
    for path in write_report(study_dir, folder, lambda line: click.echo(line, err=True)):
        click.echo(path)


PASSED_ON: dict[str, Any] = {"ignore_unknown_options": True, "help_option_names": []}


@cli.command(context_settings=PASSED_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Time training against PEFT, or inference (study bench --help, study bench inference --help)."""
    _run_benchmarks(arguments)


@cli.command("infer-cost", context_settings=PASSED_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def infer_cost(arguments: tuple[str, ...]) -> None:
    """Another name of `study bench inference`."""
    _run_benchmarks(("inference", *arguments))


def _run_benchmarks(arguments: tuple[str, ...]) -> None:
    """Run the folder ``benchmarks``: inside the package in a wheel, beside it in a clone."""
    import runpy

    here = Path(__file__).parent
    code = here / "benchmarks" if (here / "benchmarks").exists() else here.parent / "benchmarks"
    sys.argv = ["study bench", *arguments]
    runpy.run_path(str(code), run_name="__main__")


@cli.command()
@STUDY_DIR
@click.argument("cell")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--merged",
    is_flag=True,
    help="The whole model with the adapter added to its weights, in float32.",
)
def export(study_dir: Path, cell: str, folder: Path, merged: bool) -> None:
    """Write the adapter of a CELL (an id, or how one begins) to DIR in PEFT's format; needs train.save_adapter=true."""
    from study.integrations import peft

    click.echo((peft.export_merged if merged else peft.export_adapter)(study_dir, cell, folder))


@cli.command("import")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def import_(folder: Path, overrides: tuple[str, ...]) -> None:
    """Check the PEFT adapter in DIR against its base and print the lines that go on with it and that measure it.

    The base is the one that the adapter names, or what model=... model.path=... say.
    """
    from study.integrations import peft

    for line in peft.inspect_adapter(folder, overrides):
        click.echo(line)


CONFIG_FILE = click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
IMPORT_OPTIONS = (
    click.option("--entry", help="Which configuration, of a file that holds several."),
    click.option(
        "--name", help="Of the experiment and the study.  [default: the file's or the entry's]"
    ),
    click.option(
        "--to",
        type=click.Path(path_type=Path),
        default=Path("conf"),
        show_default=True,
        metavar="FOLDER",
    ),
    click.option(
        "--sweep",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Axolotl's sweep file: lists by key.",
    ),
    click.option("--force", is_flag=True, help="Replace files that are there already."),
)


def import_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(IMPORT_OPTIONS):
        command = option(command)
    return command


@cli.command("import-config")
@CONFIG_FILE
@import_options
def import_config(file: Path, **options: Any) -> None:
    """Turn a configuration of FinLoRA, Axolotl or PEFT into an experiment, and print the line that trains it."""
    _import_config(file, {}, **options)


@cli.command("sweep-from")
@CONFIG_FILE
@click.option("--ranks", default="4,16,64,256", show_default=True)
@click.option("--rules", default="lora,rslora", show_default=True)
@click.option("--seeds", default="", help="Such as 0,1,2,3,4.  [default: the configuration's own]")
@import_options
def sweep_from(file: Path, ranks: str, rules: str, seeds: str, **options: Any) -> None:
    """import-config, swept over ranks and rules."""
    lists = {"adapter.scaling": _list(rules), "adapter.rank": _list(ranks), "seed": _list(seeds)}
    _import_config(file, {key: values for key, values in lists.items() if values}, **options)


def _list(text: str) -> list[int | str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [int(part) if part.isdecimal() else part for part in parts]


def _import_config(
    file: Path,
    swept: dict[str, list[Any]],
    *,
    entry: str | None,
    name: str | None,
    to: Path,
    sweep: Path | None,
    force: bool,
) -> None:
    from study.integrations.configs import from_sweep_file, read_file, write

    experiment = read_file(file, entry)
    experiment.sweep = {**(from_sweep_file(sweep, file, entry) if sweep else {}), **swept}
    written = write(
        experiment, re.sub(r"[^\w-]+", "_", name or entry or file.stem), to, force=force
    )
    for title, notes in (
        ("no counterpart here", experiment.left_out),
        ("not in the file", experiment.assumed),
    ):
        for note in notes:
            click.echo(f"{title}: {note}", err=True)
    for path in written.paths:
        click.echo(f"wrote {path}", err=True)
    click.echo(written.command)


@cli.command()
@STUDY_DIR
@click.option(
    "--export",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write one HTML file instead.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Where to serve.  [default: any free port]",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Another than this machine's own is for all to see.",
)
@click.option(
    "--wandb",
    is_flag=True,
    help="Build the workspace in W&B instead, for a study of tracker=wandb.",
)
def dashboard(study_dir: Path, file: Path | None, port: int, host: str, wandb: bool) -> None:
    """Look at every layer's norms in a browser, while a study trains and afterwards."""
    if wandb:
        from study.tracking.workspace import open_workspace

        plots = study_dir.parent.parent / "plots" / study_dir.name
        click.echo(open_workspace(study_dir, plots, lambda line: click.echo(line, err=True)))
        return
    try:
        from study.dashboard.export import export
        from study.dashboard.server import LOCAL, serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("plotly", "starlette", "uvicorn"):
            raise
        raise StudyError(
            f"study dashboard needs {error.name}: pip install 'study[dashboard]'"
        ) from None

    if file is not None:
        inside, there = export(study_dir, file)
        left_out = f", {there - inside} more do not fit" if inside < there else ""
        click.echo(f"{file}: {file.stat().st_size / 1e6:.1f} MB, {inside} quantities{left_out}")
        return
    if host not in LOCAL:
        click.echo(
            f"study: warning: anyone who reaches {host} can read this study; there is no password",
            err=True,
        )

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
        if sys.argv[1:2] == [
            "-sc"
        ]:  # Hydra's completion script calls the executable so, without the word train
            from study.sweeps import app as hydra_app

            os.environ["COMP_LINE"] = os.environ.get("COMP_LINE", "").replace(
                "study train", "study", 1
            )
            hydra_app.main(sys.argv[1:])
        else:
            cli(prog_name="study")
    except StudyError as error:
        click.echo(f"study: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo(
            "study: interrupted; the same command goes on with the cells that are not done",
            err=True,
        )
        sys.exit(130)
