"""The commands ``check``, which compares a study's files with what was written, and ``archive``."""

from pathlib import Path

import click

from study.cli.group import PATH, STUDY_DIR, cli, say
from study.errors import MOST_CHARACTERS, printable
from study.store.archive import check_study, write_archive
from study.store.records import cell_folders, is_archived
from study.sweeps.progress import count_noun


@cli.command()
@STUDY_DIR
@click.option(
    "--repair",
    is_flag=True,
    help="Print the shell commands that move damaged results aside. Runs none of them.",
)
@click.pass_context
def check(context: click.Context, study_dir: Path, repair: bool) -> None:
    """Verify every record, table and checkpoint of a study.

    Prints a line for each problem. The exit code is 1 if a file is damaged, and 0 otherwise.
    """
    problems = list(check_study(study_dir))
    for problem in problems:
        line = printable(f"{problem.path}: {problem.reason}", MOST_CHARACTERS)
        if repair:  # a comment of the shell where a name could not be copied from a terminal
            line = problem.repair if problem.repair.isprintable() else f"# {line}"
        click.echo(line)
    folders = cell_folders(study_dir)
    cells = count_noun(len(folders), "cell")
    if archived := sum(map(is_archived, folders)):
        cells += f" ({archived} archived, which keeps no adapters)"
    summary = f"{cells}: {count_noun(len(problems), 'problem') if problems else 'no problem'}"
    if problems and not repair:
        summary += f". Run `study check {study_dir} --repair` for the commands that repair it"
    click.echo(summary, err=repair)
    context.exit(1 if problems else 0)


@cli.command()
@STUDY_DIR
@click.option("--to", type=PATH, required=True, metavar="FOLDER", help="Folder of the archive.")
@click.option(
    "--plots",
    default="plots",
    show_default=True,
    metavar="FOLDER",
    help="Folder of figures that the archived study names.",
)
def archive(study_dir: Path, to: Path, plots: str) -> None:
    """Write a study into one file per table, for a repository or a paper.

    FOLDER/cells.parquet holds the configuration and the record of every cell that has ended,
    FOLDER/metrics.parquet and FOLDER/probes.parquet its rows. Every command that reads a study
    reads FOLDER in place, and so does pandas. Adapters are left out.
    """
    if left_out := write_archive(study_dir, to, plots):
        say(f"left out, because they have not ended: {', '.join(left_out)}")
    megabytes = sum(path.stat().st_size for path in to.glob("*.parquet")) / 1e6
    click.echo(f"{to}: {count_noun(len(cell_folders(to)), 'cell')}, {megabytes:.1f} MB")
