"""The console script ``study``.

``study train`` is a Hydra application and gets its arguments unchanged; the others are ordinary
commands. ``study --help`` must be instant, so every command imports what it needs inside its
function.
"""

import os
import re
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from study import __version__
from study.errors import StudyError

PATH = click.Path(path_type=Path)
STUDY_DIR = click.argument("study_dir", type=PATH, metavar="RESULTS/NAME")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="study")
def cli() -> None:
    """How does an adapter's scaling behave as its rank grows?

    \b
    study train experiment=quick       train the ranks and rules of a study
    study analyze results/quick        fit scaling exponents and test them
    study figures results/quick        draw the figures from the tables
    study report  results/quick        write one page with everything
    study dashboard results/quick      show every layer in a browser
    """


def say(line: str) -> None:
    """Print a line on stderr."""
    click.echo(line, err=True)


PASSED_ON: dict[str, Any] = {"ignore_unknown_options": True, "help_option_names": []}
"""For a command that parses its own arguments."""


@cli.command(context_settings=PASSED_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train(arguments: tuple[str, ...]) -> None:
    """Train one cell, or a sweep with -m (study train --help)."""
    from study.sweeps import app as hydra_app

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
    from study.sweeps.status import load_status, render
    from study.sweeps.watch import watch as follow

    if watch:
        follow(study_dir)
    else:
        click.echo(render(load_status(study_dir)))


@cli.command()
@STUDY_DIR
def analyze(study_dir: Path) -> None:
    """Fit scaling exponents and p*, and print a summary.

    If learning rates were swept, it also prints how the best one scales with rank. Every exponent
    is in the tables, which are written to the study's folder.
    """
    from rich.console import Console

    from study import analysis
    from study.report import current_tables
    from study.store import ANALYSED
    from study.sweeps.status import count_noun

    found = current_tables(study_dir, say)
    Console().print(analysis.render_table(analysis.summary(found.exponents)))
    if len(found.stable):
        Console().print(analysis.render_stable(found.stable))
    if len(transfer := analysis.rate_transfer(found.rates)):
        Console().print(analysis.render_rates(transfer))
    for name in ANALYSED:
        rows = count_noun(len(getattr(found, name)), "row")
        click.echo(f"{rows} in {study_dir / f'{name}.parquet'}")


@cli.command()
@STUDY_DIR
@click.option(
    "--rank-free",
    default="",
    metavar="RANKS",
    help="Also measure these ranks, by rank-free runs; any size, such as 65536,1048576.",
)
def distances(study_dir: Path, rank_free: str) -> None:
    """Measure the distance of SGD runs from infinite rank.

    Trains the limit of infinite rank and writes distances.parquet.
    """
    from study.analysis.distances import laws
    from study.store import derived, write_derived
    from study.sweeps.distances import measure_study
    from study.sweeps.status import count_noun

    made_from = derived.complete_cells_hash(study_dir)
    table = measure_study(study_dir, rank_list("--rank-free", rank_free), say)
    path = write_derived(study_dir, "distances", table, made_from)
    for law in laws(table):
        click.echo(law)
    click.echo(f"{count_noun(len(table), 'distance')} in {path}")


def rank_list(option: str, text: str) -> list[int]:
    """The ranks in ``text``, which is the value of ``option``; empty for an empty text.

    Raises :class:`StudyError` for anything but positive integers separated by commas.
    """
    ranks = text.split(",") if text else []
    if not all(rank.strip().isdecimal() and int(rank) > 0 for rank in ranks):
        raise StudyError(
            f"{option}={text} is not a list of ranks: give positive integers such as 256,1024"
        )
    return [int(rank) for rank in ranks]


@cli.command()
@STUDY_DIR
@click.option("--to", type=PATH, help="Folder of the figures.  [default: plots/NAME]")
def figures(study_dir: Path, to: Path | None) -> None:
    """Draw the figures of a study, as PNG and PDF. Analyzes it first if needed."""
    from study.report import current_tables, draw_figures

    folder = to or study_dir.parent.parent / "plots" / study_dir.name
    for path in draw_figures(current_tables(study_dir, say), folder):
        click.echo(path)


@cli.command()
@STUDY_DIR
@click.option("--plots", type=PATH, help="Folder of the figures.  [default: plots/NAME]")
def report(study_dir: Path, plots: Path | None) -> None:
    """Write one page: verdicts, p*, caveats and figures.

    The page is report.md and report.html. Analyzes and draws the study first if needed.
    """
    from study.report import write_report

    folder = plots or study_dir.parent.parent / "plots" / study_dir.name
    for path in write_report(study_dir, folder, say):
        click.echo(path)


@cli.command(context_settings=PASSED_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Time training against PEFT, or adapters at inference."""
    _run_benchmarks(arguments)


@cli.command("infer-cost", context_settings=PASSED_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def infer_cost(arguments: tuple[str, ...]) -> None:
    """The same as study bench inference."""
    _run_benchmarks(("inference", *arguments))


def _run_benchmarks(arguments: tuple[str, ...]) -> None:
    """Run a benchmark. In a wheel the benchmarks are a subpackage, in a clone a package."""
    package = "study.benchmarks" if find_spec("study.benchmarks") else "benchmarks"
    import_module(f"{package}.commands").main(arguments)


@cli.command()
@STUDY_DIR
@click.argument("cell")
@click.argument("folder", type=PATH, metavar="DIR")
@click.option(
    "--merged",
    is_flag=True,
    help="Write the whole model in float32, with the adapter merged into its weights.",
)
def export(study_dir: Path, cell: str, folder: Path, merged: bool) -> None:
    """Write a trained adapter to DIR in PEFT's format.

    CELL is an id or the start of one. The cell must have been trained with train.save_adapter=true.
    """
    from study.integrations import peft

    click.echo((peft.export_merged if merged else peft.export_adapter)(study_dir, cell, folder))


@cli.command("import")
@click.argument("folder", type=PATH, metavar="DIR")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def import_(folder: Path, overrides: tuple[str, ...]) -> None:
    """Check a PEFT adapter and print commands to train it.

    The commands train the adapter in DIR further, or only measure it. Its base is the one that it
    names, or model=... model.path=...
    """
    from study.integrations import peft

    for line in peft.inspect_adapter(folder, overrides):
        click.echo(line)


CONFIG_FILE = click.argument("file", type=PATH, metavar="FILE")
IMPORT_OPTIONS = (
    click.option("--entry", help="The configuration to read, if the file holds several."),
    click.option(
        "--name", help="Name of the experiment.  [default: that of the entry or the file]"
    ),
    click.option(
        "--to",
        type=PATH,
        default=Path("conf"),
        show_default=True,
        metavar="FOLDER",
        help="Configuration folder to write to.",
    ),
    click.option(
        "--sweep",
        type=PATH,
        metavar="FILE",
        help="A sweep file of Axolotl: a list of values for each key.",
    ),
    click.option("--force", is_flag=True, help="Overwrite existing files."),
)


def import_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(IMPORT_OPTIONS):
        command = option(command)
    return command


@cli.command("import-config")
@CONFIG_FILE
@import_options
def import_config(file: Path, **options: Any) -> None:
    """Import a configuration of FinLoRA, Axolotl or PEFT.

    Writes it as an experiment and prints the command that trains it.
    """
    _import_config(file, {}, **options)


@cli.command("sweep-from")
@CONFIG_FILE
@click.option("--ranks", default="4,16,64,256", show_default=True, help="Ranks to train.")
@click.option("--rules", default="lora,rslora", show_default=True, help="Scaling rules to train.")
@click.option("--seeds", default="", help="Seeds, such as 0,1,2.  [default: the file's seed]")
@import_options
def sweep_from(file: Path, ranks: str, rules: str, seeds: str, **options: Any) -> None:
    """Like import-config, swept over ranks and rules."""
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
    chosen = re.sub(r"[^\w-]+", "_", name or entry or file.stem)
    written = write(experiment, chosen, to, force=force)
    for note in experiment.left_out:
        click.echo(f"no counterpart here: {note}", err=True)
    for note in experiment.assumed:
        click.echo(f"not in the file: {note}", err=True)
    for path in written.paths:
        click.echo(f"wrote {path}", err=True)
    click.echo(written.command)


@cli.command()
@STUDY_DIR
@click.option(
    "--export",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the page to one HTML file instead.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port to serve on.  [default: a free one]",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to serve on. Other addresses expose the dashboard to your network.",
)
@click.option(
    "--wandb",
    is_flag=True,
    help="Create a workspace in W&B instead, for a study trained with tracker=wandb.",
)
def dashboard(study_dir: Path, file: Path | None, port: int, host: str, wandb: bool) -> None:
    """Show every layer in a browser, also during training."""
    if wandb:
        from study.tracking.workspace import open_workspace

        plots = study_dir.parent.parent / "plots" / study_dir.name
        click.echo(open_workspace(study_dir, plots, say))
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
        click.echo(f"{address} (Ctrl-C to stop)")
        if sys.stdout.isatty():
            click.launch(address)

    serve(study_dir, host, port, ready)


@cli.command()
@click.argument("model", type=click.Choice(["smollm2"]))
@click.option("--force", is_flag=True, help="Fetch and convert again, even if it is in the cache.")
def fetch(model: str, force: bool) -> None:
    """Download a base model and print its path.

    It is stored in the user cache, or in the folder STUDY_CACHE.
    """
    from study.models import fetch_smollm2

    click.echo(fetch_smollm2(force))


def main() -> None:
    """Entry point. A user's mistake gets one line and exit code 2; a bug gets a traceback."""
    try:
        # Hydra's completion script calls the executable like this, without the word train.
        if sys.argv[1:2] == ["-sc"]:
            from study.sweeps import app as hydra_app

            line = os.environ.get("COMP_LINE", "")
            os.environ["COMP_LINE"] = line.replace("study train", "study", 1)
            hydra_app.main(sys.argv[1:])
        else:
            cli(prog_name="study")
    except StudyError as error:
        click.echo(f"study: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo(
            "study: interrupted; run the same command again to train the remaining cells",
            err=True,
        )
        sys.exit(130)
