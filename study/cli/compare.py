"""The command ``study compare``."""

from pathlib import Path

import click
from rich.console import Console

from study.analysis.compare import compare as compare_studies
from study.analysis.compare import conclusions, to_read
from study.analysis.terminal import render_comparison, render_texts
from study.cli.group import PATH, cli, print_sentences, print_tables, say, tables_as
from study.dashboard.studies import names_of
from study.errors import StudyError, printable
from study.figures import save
from study.figures.comparison import comparison
from study.report import plots_folder
from study.store import load_measured


@cli.command()
@click.argument("studies", type=PATH, metavar="RESULTS/A RESULTS/B...", nargs=-1, required=True)
@click.option("--to", type=PATH, help="Folder of the figure.  [default: plots_dir/A]")
@tables_as
def compare(studies: tuple[Path, ...], to: Path | None, output: str | None) -> None:
    """Compare studies: settings that differ; exponents, p* and losses with their differences.

    Each study is compared with the first one, at the steps that both have and at the last step of
    each. Draws compare_B.png and .pdf in the figures' folder of the first study. --json prints
    every common step, with the intervals of each study.
    """
    if len(studies) < 2:
        raise StudyError(
            "study compare needs two studies or more: study compare RESULTS/A RESULTS/B"
        )
    first, *others = names = names_of(studies)
    if len(set(names)) < len(names):
        raise StudyError(f"{first} is given twice: give each study once")
    tables = {name: load_measured(path) for name, path in zip(names, studies, strict=True)}
    found = compare_studies(tables)
    if output:
        print_tables(output, rows=found.rows, settings=found.settings)
        return
    shown = to_read(found.rows)
    Console().print(render_texts("Settings that differ", found.settings))
    for name in others:
        click.echo(printable(f"A = {first}, B = {name}"))
        for table in render_comparison(shown[shown["study"] == name]):
            Console().print(table)
        print_sentences(conclusions(found.rows[found.rows["study"] == name]))
    drawn = comparison(found, first)
    file = "compare_" + "_".join(Path(name).name for name in others)
    for path in save(drawn, to or plots_folder(studies[0]), file):
        say(str(path))
