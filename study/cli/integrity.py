"""The command ``study check``, which compares a study's files with what was written."""

from pathlib import Path

import click

from study.cli.group import STUDY_DIR, cli
from study.errors import MOST_CHARACTERS, printable


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

    Prints a line for each problem. The exit code is 1 if a file is damaged, and 0 otherwise. A file
    that a killed process left is only mentioned.
    """
    from study.store.integrity import check_study
    from study.store.records import cell_folders
    from study.sweeps.status import count_noun

    problems = list(check_study(study_dir))
    for problem in problems:
        line = printable(f"{problem.path}: {problem.reason}", MOST_CHARACTERS)
        if repair:  # a comment of the shell where a name could not be copied from a terminal
            line = problem.repair if problem.repair.isprintable() else f"# {line}"
        click.echo(line)
    damaged = sum(problem.is_damage for problem in problems)
    left = len(problems) - damaged
    cells = count_noun(len(cell_folders(study_dir)), "cell")
    summary = f"{cells}: {count_noun(damaged, 'problem') if damaged else 'no problem'}"
    if left:
        summary += f", {count_noun(left, 'file')} to delete"
    if problems and not repair:
        summary += f". Run `study check {study_dir} --repair` for the commands that repair it"
    click.echo(summary, err=repair)
    context.exit(1 if damaged else 0)
