"""The report: its figures, and its two files, Markdown and HTML."""

import base64
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote, unquote

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from matplotlib.figure import Figure

from study.analysis import summary
from study.analysis.grouping import curve_labels, seed_numbers
from study.analysis.wording import TESTED
from study.config.expectations import Entry
from study.errors import StudyError, count_noun, printable
from study.figures import FIGURES, draw_all, save
from study.figures.selection import Absent
from study.figures.style import DPI
from study.report import sections
from study.report.answer import answer
from study.report.caveats import caveats
from study.report.expected import expected_section
from study.report.provenance import Record, provenance_lines, records_of
from study.report.text import (
    anchor,
    bullets,
    distinct,
    minus,
    number_list,
    row_list,
    rule_of_row,
    table_of,
)
from study.store import StudyTables, cell_folders, read_record, write_output
from study.store.files import remove
from study.vocabulary.optimizers import label

INCH = 120
"""Pixels of the page per inch of a figure. Labels of 8 points then look like 10 point text."""
UNBROKEN = r"[−+]?\d\.\d+ \[[−+]?\d\.\d+, [−+]?\d\.\d+\]|\d %"
"""``0.50 [0.49, 0.51]`` and ``95 %``. A line must not break inside them."""
LIVE = re.compile(r"<(?=[A-Za-z/!?])|(?<=\])[(\[:]")
"""The characters that begin HTML, or make a link of brackets."""
MOST_OF_A_TEXT = 20_000
"""Characters of a name or a sentence."""
# The columns of the summary in a notebook.
SHOWN = ["optimizer", "rule", "curve", "quantity", "batch", "step"]
SHOWN += ["estimate", "predicted", "verdict"]
HEADING = re.compile(r"^## (.+)$", re.MULTILINE)


class Written(str):
    """Markdown of the report itself, whose names are :func:`inert`."""


def inert(value: object) -> str:
    """A text in Markdown: one line without HTML, links, pictures and control characters."""
    return printable(LIVE.sub(lambda found: f"&#{ord(found[0])};", str(value)), MOST_OF_A_TEXT)


def report_text(
    name: str,
    tables: StudyTables,
    records: Sequence[Record],
    pictures: Sequence[str] = (),
    late: Sequence[Entry] = (),
) -> str:
    """The whole report on the study ``name`` as Markdown, from analyzed tables.

    ``pictures``: of :func:`picture`. ``late``: of :func:`~study.report.expected.expected_section`.
    """
    page = Environment(
        loader=PackageLoader("study.report"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Written) else inert(value),
    )
    page.globals |= {
        "bullets": lambda lines: Written(bullets([*map(inert, lines)])),
        "contents": _contents,
        "count_noun": count_noun,
        "table": lambda rows: Written(table_of([{h: inert(row[h]) for h in row} for row in rows])),
        "tested": TESTED,
        "written": Written,
    }
    expected = expected_section(tables, records, late)
    text = page.get_template("report.jinja").render(
        name=name,
        overview=_overview(tables),
        answer=[*expected.get("primary", []), *answer(tables)],
        caveats=caveats(tables, records),
        expected=expected,
        condition=sections.condition_section(tables),
        p_star=sections.p_star_section(tables),
        exponents=sections.exponent_section(tables),
        rates=sections.rate_section(tables),
        losses=sections.loss_section(tables),
        task=sections.task_section(tables),
        truncations=sections.truncation_section(tables),
        pictures=pictures,
        provenance=provenance_lines(tables, records),
    )
    return minus(re.sub(r"\n{3,}", "\n\n", text)).strip() + "\n"


def _contents(text: str) -> Written:
    """A line of links to the sections of ``text``."""
    return Written(" · ".join(f"[{title}](#{anchor(title)})" for title in HEADING.findall(text)))


def _overview(tables: StudyTables) -> str:
    cells = tables.cells
    seeds = len(set(seed_numbers(cells)))
    return (
        f"{len(cells)} cells on {distinct(cells['model'])} and {distinct(cells['data'])}: "
        f"ranks {number_list(sorted(set(cells['rank'])))}; "
        f"{distinct(rule_of_row(row) for row in row_list(curve_labels(cells)))}; "
        f"{distinct(label(str(name)) for name in cells['optimizer'])}; "
        f"{number_list(sorted(set(cells['steps'])))} steps; {count_noun(seeds, 'seed')}."
    )


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
) -> list[Path]:
    """Draw the figures into ``plots``; write ``report.md`` and ``report.html`` into the study or
    ``to``, and return their paths."""
    folder = study_dir if to is None else to
    drawn = draw_figures(tables, plots)
    text = report_of(study_dir, tables, dict.fromkeys(path.stem for path in drawn), plots, folder)
    paths = [folder / "report.md", folder / "report.html"]
    write_output(paths[0], text)
    title = f"{printable(study_dir.resolve().name)}: report"
    write_output(paths[1], as_html(text, title, folder))
    return paths


def plots_folder(study_dir: Path) -> Path:
    """The folder of a study's figures: ``plots_dir/NAME``, by the configuration of a cell.

    A record may come from somebody else, so only a folder next to ``results_dir`` is accepted.
    """
    records = filter(None, map(read_record, cell_folders(study_dir)))
    config: dict[str, object] = next((r["config"] for r in records if r["config"]), {})
    results, plots = (Path(str(config.get(key, ""))) for key in ("results_dir", "plots_dir"))
    place, depth = study_dir.absolute(), len(results.parts)
    is_beside = not any(path.is_absolute() or ".." in path.parts for path in (results, plots))
    is_here = place.parts[-1 - depth : -1] == results.parts  # it was not moved
    if config and is_beside and is_here:
        return Path(os.path.relpath(place.parents[depth] / plots / study_dir.name))
    return study_dir.parent.parent / "plots" / study_dir.name


def report_of(
    study_dir: Path,
    tables: StudyTables,
    figures: Iterable[str],
    plots: Path,
    folder: Path,
    late: Sequence[Entry] = (),
) -> str:
    """The report that will lie in ``folder``, with the ``figures`` in ``plots``. ``late``: of
    :func:`~study.report.expected.expected_section`."""
    pictures = []
    for name in figures:
        docstring = (FIGURES[name].__doc__ or name).strip().split("\n\n")[0]
        caption = " ".join(docstring.split()).replace("``", "`")
        pictures.append(picture(caption, plots / f"{name}.png", folder))
    records = records_of(study_dir, tables)
    return report_text(study_dir.resolve().name, tables, records, pictures, late)


def picture(caption: str, path: Path, folder: Path) -> Written:
    """A picture with its caption below, in a text that lies in ``folder``."""
    source = Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    return Written(f"![{caption}]({quote(source)})\n\n{caption}")


def as_html(text: str, title: str, folder: Path) -> str:
    """The report as a whole HTML page with its pictures. ``folder``: where it will lie."""

    def embedded(found: re.Match[str]) -> str:
        png = (folder / unquote(found[1])).read_bytes()
        # A one-column figure stays half as wide as a full-page one.
        width = round(INCH * int.from_bytes(png[16:20]) / DPI)
        data = base64.b64encode(png).decode()
        return f'<img width="{width}" src="data:image/png;base64,{data}"'

    # The names in the text are inert, so its HTML is that of the template.
    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    body = re.sub(UNBROKEN, lambda found: found[0].replace(" ", "\u00a0"), body)
    body = re.sub("<h2>(.*?)</h2>", lambda h: f'<h2 id="{anchor(h[1])}">{h[1]}</h2>', body)
    body = re.sub('<img src="(.*?)"', embedded, body)
    page = Environment(loader=PackageLoader("study.report"), autoescape=True)
    return page.get_template("page.html").render(title=title, body=Markup(body))


@dataclass(frozen=True)
class Study(StudyTables):
    """The tables of a study in a notebook, which shows what was found. ``folder``: of the study."""

    folder: Path = Path()

    def _repr_html_(self) -> str:
        """The sentences of the answer, and the exponents to read first."""
        found = MarkdownIt("commonmark").render(bullets([*map(inert, answer(self))]))
        rows = summary(self.exponents) if len(self.exponents) else pd.DataFrame(columns=SHOWN)
        name = escape(printable(self.folder.resolve().name))
        return f"<h3>{name}</h3>{found}{rows[SHOWN].to_html(index=False, na_rep='')}"

    def figure(self, name: str) -> Figure:
        """The figure ``name`` of :data:`study.figures.FIGURES`.

        Raises ``KeyError`` for another name, and :class:`StudyError` if the study lacks its data.
        """
        try:
            return FIGURES[name](self)
        except Absent as lacks:
            raise StudyError(f"no figure {name}: {lacks}") from None

    def report(self, to: str | os.PathLike[str] | None = None) -> Path:
        """Write what ``study report`` writes. Returns the path of the page."""
        plots = plots_folder(self.folder) if to is None else Path(to) / "figures"
        _, page = write_report(self.folder, self, plots, None if to is None else Path(to))
        return page
