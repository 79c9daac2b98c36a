"""The command ``dashboard``."""

import sys
from pathlib import Path

import click

from study.cli.group import PATH, cli, say
from study.errors import StudyError
from study.store.records import cell_folders, no_study, read_record
from study.sweeps.progress import live_sweeps, waiting_cells
from study.vocabulary.extras import install


@cli.command()
@click.argument("studies", type=PATH, metavar="RESULTS/NAME...", nargs=-1, required=True)
@click.option(
    "--export",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the page to one HTML file instead.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port.  [default: a free one]"
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
def dashboard(
    studies: tuple[Path, ...], file: Path | None, port: int, host: str, wandb: bool
) -> None:
    """The page shows one of several studies at a time. One that has no cell yet is empty."""
    if wandb:
        from study.report import plots_folder
        from study.tracking.workspace import open_workspace

        if len(studies) > 1:
            raise StudyError(f"--wandb takes one study, not {len(studies)}: run it for each")
        [study_dir] = studies
        click.echo(open_workspace(study_dir, plots_folder(study_dir), say))
        return
    try:
        from study.dashboard.document import export
        from study.dashboard.server import LOCAL, serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("plotly", "starlette", "uvicorn"):
            raise
        raise StudyError(f"study dashboard needs {error.name}: {install('dashboard')}") from None

    if file is not None:
        for study_dir in studies:
            if not has_cells(study_dir):
                raise no_study(study_dir)
        inside, there = export(studies, file)
        left_out = f", {there - inside} more do not fit" if inside < there else ""
        click.echo(f"{file}: {file.stat().st_size / 1e6:.1f} MB, {inside} quantities{left_out}")
        return
    if host not in LOCAL:
        say(f"study: warning: whoever reaches {host} can read this study; nothing is encrypted")

    def ready(address: str) -> None:
        click.echo(f"{address} (Ctrl-C to stop)")
        if sys.stdout.isatty():
            click.launch(address)

    for study_dir in studies:
        check_place(study_dir)
        if not has_cells(study_dir):
            say(f"waiting for the first cell ({no_study(study_dir)})")
    serve(studies, host, port, ready, look_ahead)


def check_place(study_dir: Path) -> None:
    """Raise if no study can come to be in ``study_dir``: it is in a file, or holds studies."""
    is_below_a_file = any(place.is_file() for place in (study_dir, *study_dir.parents))
    if is_below_a_file or any(study_dir.glob("*/cells")):
        raise no_study(study_dir)


def has_cells(study_dir: Path) -> bool:
    """Whether a study has a record, readable or not."""
    return any(map(read_record, cell_folders(study_dir)))


def look_ahead(study_dir: Path) -> tuple[int, float | None]:
    """The number of cells that live sweeps have not begun, and the seconds left if known."""
    waiting = {str(record["cell_id"]) for record in waiting_cells(study_dir)}
    times = [sweep.progress().seconds_left for sweep in live_sweeps(study_dir)]
    return len(waiting), max((t for t in times if t is not None), default=None)
