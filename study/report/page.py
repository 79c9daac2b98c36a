"""The report: its content, its figures, and its two files, Markdown and HTML."""

import base64
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from matplotlib.figure import Figure

from study.analysis.answers import answer, answer_table, asked
from study.analysis.grouping import curve_labels, seed_numbers
from study.analysis.text import Section, Table, distinct, minus, number_list, table_of
from study.analysis.wording import rule_names
from study.config.expectations import Entry
from study.errors import StudyError, count_noun, printable
from study.figures import FIGURES, draw_all, save
from study.figures.selection import Absent
from study.figures.style import DPI
from study.report.caveats import caveats
from study.report.expected import expected_section, primary_answers, primary_text
from study.report.provenance import Record, provenance_lines, records_of
from study.report.sections import sections
from study.store import StudyTables, cell_folders, read_record, write_output
from study.store.files import remove
from study.vocabulary.statuses import DONE

INCH = 120
"""Pixels of the page per inch of a figure. Labels of 8 points then look like 10 point text."""
PAGE_DPI = 160
"""Of the figure on the dashboard."""
LIVE = re.compile(r"<(?=[A-Za-z/!?])|(?<=\])[(\[:]")
"""The characters that begin HTML, or make a link of brackets."""
MOST_OF_A_TEXT = 20_000
"""Characters of a name or a sentence."""
INLINE = MarkdownIt("commonmark", {"html": False}).disable(["link", "image", "autolink"])


@dataclass(frozen=True)
class Report:
    """What a report says of a study, in the order of the page. ``figures``: pictures' names, the
    one of the answer first, or none."""

    name: str
    asks: str
    about: str
    sentences: Sequence[str]
    figures: Sequence[str]
    table: Table
    caveats: Sequence[str]
    sections: Sequence[Section]


def report_of(
    name: str,
    tables: StudyTables,
    records: Sequence[Record],
    figures: Iterable[str] = (),
    late: Sequence[Entry] = (),
) -> Report:
    """The report on a study, from analyzed tables. ``figures``: those that were drawn. ``late``: of
    :func:`~study.report.expected.primary_answers`."""
    question, drawn = asked(tables), list(figures)
    first = [figure for figure in question.figures if figure in drawn][:1]
    primary = [primary_text(*one) for one in primary_answers(tables, records, late)]
    expected = expected_section(tables, records, late)
    what_ran = Section("What was run?", provenance_lines(tables, records))
    return Report(
        name=name,
        asks=question.asks,
        about=_about(tables.cells),
        sentences=[*answer(tables), *filter(None, primary)],
        figures=[*first, *(figure for figure in drawn if figure not in first)],
        table=answer_table(tables),
        caveats=caveats(tables, records) or ["None found in the tables."],
        sections=[*sections(tables), *([expected] if expected else []), what_ran],
    )


def _about(cells: pd.DataFrame) -> str:
    """``24 cells: ranks 4, 16, 64, 256; LoRA, rsLoRA; 3 seeds``."""
    ranks = number_list(sorted(set(cells["rank"])))
    seeds = count_noun(len(set(seed_numbers(cells))), "seed")
    rules = distinct(rule_names(curve_labels(cells)))
    return f"{count_noun(len(cells), 'cell')}: ranks {ranks}; {rules}; {seeds}"


def inert(value: object) -> str:
    """A text in Markdown: one line without HTML, links, pictures and control characters."""
    text = LIVE.sub(lambda found: f"&#{ord(found[0])};", str(value))
    return minus(printable(text, MOST_OF_A_TEXT))


def inline(value: object) -> Markup:
    """A text with the marks of Markdown as HTML."""
    return Markup(INLINE.renderInline(minus(printable(str(value), MOST_OF_A_TEXT))))


def _templates() -> Environment:
    page = Environment(
        loader=PackageLoader("study.report"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        autoescape=lambda name: name is not None and name.endswith("html"),
    )
    page.filters |= {"inert": inert, "inline": inline}
    page.globals |= {"caption": caption, "table": _table}
    return page


def _table(rows: Sequence[dict[str, str]]) -> str:
    return table_of([{head: inert(row[head]) for head in row} for row in rows])


def caption(figure: str) -> str:
    """The first paragraph of a figure's docstring."""
    docstring = (FIGURES[figure].__doc__ or figure).strip().split("\n\n")[0]
    return " ".join(docstring.split()).replace("``", "`")


def as_markdown(report: Report, plots: Path, folder: Path) -> str:
    """The report that will lie in ``folder``, with its pictures in ``plots``."""
    place = quote(Path(os.path.relpath(plots.resolve(), folder.resolve())).as_posix())
    text = _templates().get_template("report.jinja").render(report=report, place=place)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def as_html(
    report: Report, picture: Callable[[str], bytes], template: str = "page.html", dpi: int = DPI
) -> str:
    """The report as a whole page with its pictures, or as a part of one (``body.html``).
    ``picture``: the PNG of a figure, at ``dpi``."""

    def source(name: str) -> dict[str, str | int]:
        png = picture(name)
        width = round(INCH * int.from_bytes(png[16:20]) / dpi)
        return {"src": source_of(png), "width": width}

    return _templates().get_template(template).render(report=report, source=source)


def source_of(png: bytes) -> str:
    """The address of a picture that the page itself holds."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def png_of(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=PAGE_DPI)
    return file.getvalue()


def draw_figures(tables: StudyTables, plots: Path) -> Iterator[Path]:
    """Draw every figure that has data into ``plots``, as PNG and PDF; delete the others of an
    earlier call."""
    drawn = set()
    for name, figure in draw_all(tables, lambda line: None):
        drawn.add(name)
        yield from save(figure, plots, name)
    for name in FIGURES.keys() - drawn:
        for kind in ("png", "pdf"):
            remove(plots / f"{name}.{kind}")


def write_report(
    study_dir: Path, tables: StudyTables, plots: Path, to: Path | None = None
) -> tuple[Report, Path]:
    """Draw the figures into ``plots``; write ``report.md`` and ``report.html`` into the study or
    ``to``. Returns the report and the path of its page."""
    folder = study_dir if to is None else to
    drawn = dict.fromkeys(path.stem for path in draw_figures(tables, plots))
    report = read_report(study_dir, tables, drawn)
    write_output(folder / "report.md", as_markdown(report, plots, folder))
    page = as_html(report, lambda name: (plots / f"{name}.png").read_bytes())
    write_output(folder / "report.html", page)
    return report, folder / "report.html"


def read_report(
    study_dir: Path, tables: StudyTables, figures: Iterable[str], late: Sequence[Entry] = ()
) -> Report:
    """:func:`report_of` a study in a folder, with the records of its cells."""
    records = records_of(study_dir, tables)
    return report_of(printable(study_dir.resolve().name), tables, records, figures, late)


Pictures = dict[tuple[str, str, int], dict[str, bytes]]
"""The PNGs of figures by name; by study, question and number of cells that have ended."""


def answer_html(
    study_dir: Path, tables: StudyTables, drawn: Pictures | None = None, folded: Sequence[str] = ()
) -> str:
    """The report as a part of a page, with the figure of its answer and those of ``folded`` that
    have data. ``drawn``: earlier pictures."""
    question, drawn = asked(tables), {} if drawn is None else drawn
    key = str(study_dir), question.asks, int(tables.cells["status"].isin(DONE).sum())
    if key not in drawn:
        first, others = (
            draw_all(tables, lambda line: None, [name for name in names if name in FIGURES])
            for names in (question.figures, folded)
        )
        drawn[key] = {name: png_of(figure) for name, figure in (*islice(first, 1), *others)}
    report = read_report(study_dir, tables, drawn[key])
    return as_html(report, drawn[key].__getitem__, "body.html", PAGE_DPI)


def plots_folder(study_dir: Path) -> Path:
    """The folder of a study's figures. Only one next to ``results_dir`` is accepted of a record."""
    records = filter(None, map(read_record, cell_folders(study_dir)))
    config: dict[str, object] = next((r["config"] for r in records if r["config"]), {})
    results, plots = (Path(str(config.get(key, ""))) for key in ("results_dir", "plots_dir"))
    place, depth = study_dir.absolute(), len(results.parts)
    is_beside = not any(path.is_absolute() or ".." in path.parts for path in (results, plots))
    is_here = place.parts[-1 - depth : -1] == results.parts  # it was not moved
    if config and is_beside and is_here:
        return Path(os.path.relpath(place.parents[depth] / plots / study_dir.name))
    return study_dir.parent.parent / "plots" / study_dir.name


@dataclass(frozen=True)
class Study(StudyTables):
    """The tables of a study in a notebook, which shows what was found. ``folder``: of the study."""

    folder: Path = Path()

    def _repr_html_(self) -> str:
        """The answer: sentences, figure and table."""
        return answer_html(self.folder, self)

    def figure(self, name: str) -> Figure:
        """The figure ``name`` of :data:`study.figures.FIGURES`; KeyError for another name."""
        try:
            return FIGURES[name](self)
        except Absent as lacks:
            raise StudyError(f"no figure {name}: {lacks}") from None

    def report(self, to: str | os.PathLike[str] | None = None) -> Path:
        """Write what ``study report`` writes. Returns the path of the page."""
        plots = plots_folder(self.folder) if to is None else Path(to) / "figures"
        _, page = write_report(self.folder, self, plots, None if to is None else Path(to))
        return page
