"""The commands that read a study: ``analyze``, ``distances``, ``figures``, ``report``, ``check``
and ``archive``."""

import textwrap
from pathlib import Path

import click
from rich.console import Console

from study import analysis
from study.analysis import load_tables
from study.analysis.distances import laws
from study.cli.group import (
    PATH,
    STUDY_DIR,
    cli,
    print_sentences,
    print_tables,
    say,
    tables_as,
    text_width,
)
from study.errors import MOST_CHARACTERS, StudyError, printable, unknown
from study.figures import FIGURES, draw_all, save
from study.figures.captions import settings
from study.figures.style import FORMATS
from study.report import answer, plots_folder, write_report
from study.store import StudyTables, write_table
from study.store.archive import check_study, write_archive
from study.store.records import cell_folders, is_archived
from study.sweeps.progress import count_noun


@cli.command()
@STUDY_DIR
@tables_as
def analyze(study_dir: Path, output: str | None) -> None:
    """Fit scaling exponents and p*, and print a summary.

    If learning rates were swept, it also prints how the best one scales with rank. Every exponent
    is in the tables, which are written to the study's folder.
    """
    say("analyzing the cells ...")
    found = load_tables(study_dir)
    for name in ("exponents", "stable", "rates", "losses"):
        write_table(study_dir / f"{name}.parquet", getattr(found, name))
    exponents, transfer = analysis.summary(found.exponents), analysis.rate_transfer(found.rates)
    if output:
        stable = analysis.first_to_read(found.stable) if len(found.stable) else found.stable
        tables = {"exponents": exponents, "stable": stable, "rates": transfer}
        print_tables(output, **tables, losses=found.losses, answer=answer(found))
        return
    Console().print(analysis.render_table(exponents))
    if len(found.stable):
        Console().print(analysis.render_stable(found.stable))
    if len(transfer):
        Console().print(analysis.render_rates(transfer))
    conclude(found, study_dir)
    say(f"all exponents: {study_dir / 'exponents.parquet'}")
    say(f"next: study report {study_dir}")


def conclude(tables: StudyTables, study_dir: Path) -> None:
    """Print what the study found, in a few sentences."""
    head = printable(f"{study_dir.name}: {settings(tables.cells)}")
    click.echo("\n" + textwrap.fill(head, text_width(), subsequent_indent="  "))
    print_sentences(answer(tables))
    click.echo()


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
    from study.sweeps.distances import measure_study

    table = measure_study(study_dir, rank_list("--rank-free", rank_free), say)
    path = write_table(study_dir / "distances.parquet", table)
    for law in laws(table):
        click.echo(law)
    click.echo(f"{count_noun(len(table), 'distance')} in {path}")


def rank_list(option: str, text: str) -> list[int]:
    """The ranks in ``text``, which is the value of ``option``; empty for an empty text."""
    ranks = text.split(",") if text else []
    if not all(rank.strip().isdecimal() and int(rank) > 0 for rank in ranks):
        raise StudyError(f"{option}={text}: give positive integers such as 256,1024")
    return [int(rank) for rank in ranks]


@cli.command()
@STUDY_DIR
@click.option("--to", type=PATH, help="Folder of the figures.  [default: plots_dir/NAME]")
@click.option(
    "--only",
    "names",
    multiple=True,
    type=click.Choice(list(FIGURES)),
    metavar="FIGURE",
    help="Draw this one; may be repeated.",
)
@click.option(
    "--formats", default="png,pdf", show_default=True, help="File formats: png, pdf and svg."
)
def figures(study_dir: Path, to: Path | None, names: tuple[str, ...], formats: str) -> None:
    """Draw the figures of a study."""
    kinds = formats.split(",")
    for kind in kinds:
        if kind not in FORMATS:
            raise unknown("--formats", kind, FORMATS)
    folder = to or plots_folder(study_dir)
    missing: list[str] = []
    say("analyzing the cells ...")
    for name, figure in draw_all(load_tables(study_dir), missing.append, names or None):
        for path in save(figure, folder, name, kinds):
            click.echo(path)
    if names and missing:
        raise StudyError("; ".join(missing))
    for line in missing:
        say(line)


@cli.command()
@STUDY_DIR
@click.option("--to", type=PATH, help="Folder of the page.  [default: RESULTS/NAME]")
@click.option(
    "--plots",
    type=PATH,
    help="Folder of the figures.  [default: plots_dir/NAME, or figures in the folder of --to]",
)
def report(study_dir: Path, to: Path | None, plots: Path | None) -> None:
    """Write one page, and print what the study found.

    The page is report.md and report.html: verdicts, p*, caveats and figures. With --to, it needs no
    right to write to the study's folder.
    """
    usual = plots or (to / "figures" if to else plots_folder(study_dir))
    say("analyzing the cells and drawing the figures ...")
    tables = load_tables(study_dir)
    [_, page] = write_report(study_dir, tables, usual, to)
    conclude(tables, study_dir)
    click.echo(f"open {page}")
    click.echo(f"study dashboard {study_dir}    # every layer, in a browser")


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
    problems, folders = list(check_study(study_dir)), cell_folders(study_dir)
    for problem in problems:
        line = printable(f"{problem.path}: {problem.reason}", MOST_CHARACTERS)
        if repair:  # a comment of the shell where a name could not be copied from a terminal
            line = problem.repair if problem.repair.isprintable() else f"# {line}"
        click.echo(line)
    summary = count_noun(len(folders), "cell")
    if archived := sum(map(is_archived, folders)):
        summary += f" ({archived} archived, which keeps no adapters)"
    summary += f": {count_noun(len(problems), 'problem') if problems else 'no problem'}"
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
