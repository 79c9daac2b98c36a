"""The commands that read studies or a finished adapter."""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import click
import pandas as pd

from study import analysis
from study.analysis.compare import compare as compare_studies
from study.analysis.compare import conclusion, differing_settings, table_texts
from study.analysis.derived import load_tables
from study.analysis.distances import laws
from study.analysis.text import Table, plain
from study.cli.group import PATH, STUDY_DIR, cli, print_tables, say, tables_as
from study.cli.texts import print_sentences, print_texts
from study.dashboard.studies import names_of
from study.errors import MOST_CHARACTERS, StudyError, command_line, count_noun, printable, unknown
from study.figures import FIGURES, draw_all, save
from study.figures.exponents import differences
from study.figures.style import FORMATS
from study.report import answer, answer_table, asked, plots_folder, write_report
from study.report.sections import exponent_section, horizon_table, p_star_section, short
from study.store import load_measured, write_table
from study.store.archive import check_study, write_archive
from study.store.files import Damaged, check_writable
from study.store.records import ARCHIVE, cell_folders, is_archived


@cli.command()
@STUDY_DIR
@tables_as
def analyze(study_dir: Path, output: str | None) -> None:
    """If learning rates were swept, it also prints how the best one scales with rank. Every
    exponent is in the tables, which are written to the study's folder.
    """
    check_writable(study_dir)
    say("analyzing the cells ...")
    found = load_tables(study_dir)
    for name in ("exponents", "stable", "rates", "losses"):
        write_table(study_dir / f"{name}.parquet", getattr(found, name))
    exponents, transfer = analysis.summary(found.exponents), analysis.rate_transfer(found.rates)
    if output:
        tables = {"exponents": exponents, "stable": analysis.first_to_read(found.stable)}
        tables |= {"rates": transfer, "losses": found.losses}
        print_tables(output, **tables, answer=answer(found))
        return
    for section in filter(None, (exponent_section(found), p_star_section(found))):
        for table in section.tables:
            print_table(short(table))
    if len(transfer):
        at_end = found.rates.assign(horizon=found.rates["steps"])
        print_table(horizon_table(analysis.exponents_against_rho(at_end)))
    conclude(study_dir.name, asked(found).asks, answer(found), answer_table(found))
    say(f"all exponents: {study_dir / 'exponents.parquet'}")
    say(f"next: {command_line('report', study_dir)}")


def conclude(
    name: str, asks: str, sentences: Iterable[str], table: Table, figure: str = ""
) -> None:
    """Print a study's question, its answer, and where its figure is."""
    click.echo("\n" + printable(f"{name}: {asks}"))
    print_sentences(sentences)
    if figure:
        click.echo(f"# figure: {figure}")
    if table.rows:
        print_table(table)


def print_table(table: Table) -> None:
    """Print a table; rows of equal names in the first column have them as their head."""
    rows = pd.DataFrame(table.rows).map(plain).rename(columns=plain)
    first = str(rows.columns[0])
    by = first if rows[first].duplicated().any() else ""
    print_texts(plain(table.title), rows, plain(table.notes), by=by)


@cli.command()
@STUDY_DIR
def distances(study_dir: Path) -> None:
    """Trains the limit of infinite rank and writes distances.parquet."""
    from study.sweeps.distances import measure_study

    if (study_dir / ARCHIVE).exists():
        raise StudyError(f"{study_dir} is an archive: measure the study itself, then archive it")
    table = measure_study(study_dir, say)
    path = write_table(study_dir / "distances.parquet", table)
    for law in laws(table):
        click.echo(law)
    click.echo(f"{count_noun(len(table), 'distance')} in {path}")


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
    """Prints the path of each file, and a line for each figure that lacks data."""
    kinds = formats.split(",")
    for kind in kinds:
        if kind not in FORMATS:
            raise unknown("--formats", kind, FORMATS)
    check_writable(folder := to or plots_folder(study_dir))
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
def report(study_dir: Path, to: Path | None) -> None:
    """The page is report.md and report.html: verdicts, p*, caveats and figures, which are in
    plots_dir/NAME. With --to, they are in its figures/, and it works on a read-only study.
    """
    usual = to / "figures" if to else plots_folder(study_dir)
    check_writable(to or study_dir, usual)
    say("analyzing the cells and drawing the figures ...")
    tables = load_tables(study_dir)
    found, page = write_report(study_dir, tables, usual, to)
    figure = str(usual / f"{found.figures[0]}.png") if found.figures else ""
    conclude(study_dir.name, found.asks, found.sentences, found.table, figure)
    called = "python -m study" if sys.argv[0].endswith("__main__.py") else sys.argv[0]
    program = "study" if shutil.which("study") else called
    click.echo(f"# open in a browser: {page}")
    click.echo(f"{program} dashboard {study_dir}    # every layer, in a browser")


@cli.command()
@click.argument("studies", type=PATH, metavar="RESULTS/A RESULTS/B...", nargs=-1, required=True)
@click.option("--to", type=PATH, default="plots/compare", help="Folder of the figures.")
@tables_as
def compare(studies: tuple[Path, ...], to: Path, output: str | None) -> None:
    """Compares each study with the first one, at the ranks that both have and at the first and the
    last step of each. A difference has a 95 % interval.
    """
    if len(studies) < 2:
        raise StudyError("compare needs two studies: study compare RESULTS/A RESULTS/B")
    first, *others = names = names_of(studies)
    tables = {name: load_measured(path) for name, path in zip(names, studies, strict=True)}
    found, settings = compare_studies(tables), differing_settings(tables)
    if output:
        print_tables(output, rows=found, settings=settings)
        return
    for name in others:
        rows = found[found["study"] == name]
        print_sentences([f"A = {first}, B = {name}: {conclusion(rows)}"])
        file = f"{first}_{name}".replace("/", "_")
        click.echo(f"# figure: {save(differences(rows), to, file, ['png'])[0]}")
        texts = table_texts(rows).drop(columns="study")
        print_texts("Differences", texts, by="curve")
    print_texts("Settings that differ", settings)


@cli.command()
@click.argument("folder", type=PATH, metavar="ADAPTER_DIR")
@click.option(
    "--base",
    metavar="MODEL",
    help="Its base: a folder, a hub name, smollm2, gemma3 or tiny. Compares with its weights.",
)
@click.option(
    "--initial",
    type=PATH,
    metavar="DIR",
    help="The adapter before training, as save_pretrained writes it. Says how far A has moved.",
)
@tables_as
def audit(folder: Path, base: str | None, initial: Path | None, output: str | None) -> None:
    """Prints gamma, layers that have not moved, the size of gamma B A (with --base, relative to
    W0), its number of directions, and servers with another factor.
    """
    from study.integrations import auditing

    adapter, rows = auditing.audit(folder, base, initial)
    sentences = auditing.findings(adapter, rows)
    if output:
        print_tables(output, layers=rows, rule=adapter.scaling, base=base, findings=sentences)
        return
    caption = "medians over layers; stable and effective rank: how many directions γBA has"
    print_texts("What the adapter adds", auditing.by_kind(rows), caption)
    print_sentences(sentences)


@cli.command()
@STUDY_DIR
@click.pass_context
def check(context: click.Context, study_dir: Path) -> None:
    """Prints a line for each problem. The exit code is 1 if a file is damaged, and 0 otherwise."""
    try:
        problems, folders = list(check_study(study_dir)), cell_folders(study_dir)
    except Damaged as error:  # an archive can be read as a whole or not at all
        click.echo(error)
        context.exit(1)
    for path, reason in problems:
        click.echo(printable(f"{path}: {reason}", MOST_CHARACTERS))
    summary = count_noun(len(folders), "cell")
    if archived := sum(map(is_archived, folders)):
        summary += f" ({archived} archived, which keeps no adapters)"
    click.echo(f"{summary}: {count_noun(len(problems), 'problem') if problems else 'no problem'}")
    context.exit(1 if problems else 0)


@cli.command()
@STUDY_DIR
@click.option("--to", type=PATH, required=True, metavar="FOLDER", help="Folder of the archive.")
def archive(study_dir: Path, to: Path) -> None:
    """FOLDER/cells.parquet holds the configuration and the record of every cell that has ended.
    FOLDER/metrics.parquet and FOLDER/probes.parquet hold its rows. Adapters are left out.
    """
    if left_out := write_archive(study_dir, to):
        say(f"left out, because they have not ended: {', '.join(left_out)}")
    megabytes = sum(path.stat().st_size for path in to.glob("*.parquet")) / 1e6
    click.echo(f"{to}: {count_noun(len(cell_folders(to)), 'cell')}, {megabytes:.1f} MB")
