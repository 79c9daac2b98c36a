"""The report: its sections in order, its figures, and the two files, Markdown and HTML."""

import base64
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markdown_it import MarkdownIt

from study.errors import printable
from study.figures import FIGURES, draw_all, save
from study.report.answer import answer
from study.report.caveats import caveats
from study.report.expected import expected_section
from study.report.provenance import Record, provenance_section, records_of
from study.report.sections import (
    condition_section,
    exponent_section,
    loss_section,
    p_star_section,
    rate_section,
    task_section,
    truncation_section,
)
from study.report.text import (
    Block,
    Contents,
    Details,
    Picture,
    anchor,
    as_markdown,
    bullets,
    count_noun,
    distinct,
    number_list,
    row_list,
    rule_of_row,
)
from study.store import StudyTables, write_output
from study.store.files import remove
from study.vocabulary.optimizers import label

MOST_CAVEATS = 8
"""Caveats that are shown at once."""
INCH = 120
"""Pixels of the page per inch of a figure. An 8 point label is then as large as 10 point text."""
UNBROKEN = r"[-+]?\d\.\d+ \[[-+]?\d\.\d+, [-+]?\d\.\d+\]|\d %"
"""``0.50 [0.49, 0.51]`` and ``95 %``. A line must not break inside them."""
NOT_OURS = ("image", "link", "autolink", "html_inline", "html_block", "reference")
"""Markdown that the report's texts don't use. A name that contains it stays text."""


def report_blocks(
    name: str, tables: StudyTables, records: Sequence[Record], pictures: Sequence[Picture]
) -> list[Block]:
    """The whole report on the study ``name``, from analyzed tables."""
    sections: list[Block] = [
        *_caveat_section(tables, records),
        *expected_section(tables, records),
        *condition_section(tables),
        *p_star_section(tables),
        *exponent_section(tables),
        *rate_section(tables),
        *loss_section(tables),
        *task_section(tables),
        *truncation_section(tables),
        *_figure_section(pictures),
        provenance_section(tables, records),
    ]
    return [
        f"# {printable(name)}: how does LoRA's scaling behave as rank grows?",
        _overview(tables),
        f"## What was found\n\n{bullets(answer(tables))}",
        Contents.of(sections),
        *sections,
    ]


def _overview(tables: StudyTables) -> str:
    cells = tables.cells
    units = [name for name in ("seed", "data_seed") if name in cells]
    seeds = len(cells[units].drop_duplicates())
    return (
        f"{len(cells)} cells on {distinct(cells['model'])} and {distinct(cells['data'])}: "
        f"ranks {number_list(sorted(set(cells['rank'])))}; "
        f"{distinct(rule_of_row(row) for row in row_list(cells))}; "
        f"{distinct(label(str(name)) for name in cells['optimizer'])}; "
        f"{number_list(sorted(set(cells['steps'])))} steps; "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}."
    )


def _figure_section(pictures: Sequence[Picture]) -> list[Block]:
    return ["## Figures", *pictures] if pictures else []


def _caveat_section(tables: StudyTables, records: Sequence[Record]) -> list[Block]:
    found = caveats(tables, records)
    first, others = found[:MOST_CAVEATS], found[MOST_CAVEATS:]
    blocks: list[Block] = [f"## Caveats\n\n{bullets(first or ['None found in the tables.'])}"]
    if others:
        blocks.append(Details(f"{count_noun(len(others), 'lesser caveat')}", bullets(others)))
    return blocks


def draw_figures(
    tables: StudyTables, plots: Path, left_out: Callable[[str], None] | None = None
) -> Iterator[Path]:
    """Draw every figure into ``plots``, as PNG and PDF. Yields the path of each file.

    ``left_out`` gets a line for each figure whose data are missing; without it, a warning does.
    Figures of an earlier call whose data are gone are deleted.
    """
    drawn = set()
    for name, figure in draw_all(tables, left_out) if left_out else draw_all(tables):
        drawn.add(name)
        yield from save(figure, plots, name)
    for name in FIGURES.keys() - drawn:
        for kind in ("png", "pdf"):
            remove(plots / f"{name}.{kind}")


def write_report(
    study_dir: Path, tables: StudyTables, plots: Path, to: Path | None = None
) -> list[Path]:
    """Draw the figures into ``plots``, and write ``report.md`` and ``report.html`` into ``to``.

    Returns the paths of the two. ``to`` is ``study_dir`` by default. ``tables``: of
    :func:`study.analysis.load_tables`. Raises :class:`StudyError` if a file can't be written.
    """
    folder = study_dir if to is None else to
    paths = list(draw_figures(tables, plots, left_out=lambda line: None))
    figures = dict.fromkeys(path.stem for path in paths)
    blocks = report_of(study_dir, tables, figures, plots, folder)
    paths = [folder / "report.md", folder / "report.html"]
    write_output(paths[0], as_markdown(blocks))
    write_output(paths[1], as_html(blocks, f"{printable(study_dir.resolve().name)}: report"))
    return paths


def report_of(
    study_dir: Path, tables: StudyTables, figures: Iterable[str], plots: Path, folder: Path
) -> list[Block]:
    """The report that will lie in ``folder``, with the ``figures`` in ``plots``."""
    pictures = [_picture(name, plots, folder) for name in figures]
    return report_blocks(study_dir.resolve().name, tables, records_of(study_dir, tables), pictures)


def _picture(name: str, plots: Path, folder: Path) -> Picture:
    path = plots / f"{name}.png"
    source = Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    return Picture(name, _caption(name), path, source)


def _caption(figure: str) -> str:
    """The first paragraph of the figure's docstring."""
    first = (FIGURES[figure].__doc__ or figure).strip().split("\n\n")[0]
    return " ".join(first.split()).replace("``", "`")


def as_html(blocks: Iterable[Block], title: str) -> str:
    """A whole HTML page, with its pictures embedded.

    The only files in it are those of its pictures, and its only links lead to its sections. Names
    in the texts can't become markup, because the texts hold no HTML, links or pictures.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable(list(NOT_OURS))

    def markdown(text: str) -> str:
        page = re.sub(UNBROKEN, lambda found: found[0].replace(" ", "\u00a0"), reader.render(text))
        heading = r"<h2>(.*?)</h2>"
        return re.sub(heading, lambda h: f'<h2 id="{anchor(h[1])}">{h[1]}</h2>', page)

    page = Environment(
        loader=PackageLoader("study.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page.filters |= {
        "markdown": markdown,
        "inline": reader.renderInline,
        "anchor": anchor,
    }
    return page.get_template("page.html").render(title=title, blocks=map(_for_template, blocks))


def _for_template(block: Block) -> dict[str, Any]:
    if isinstance(block, str):
        return {"kind": "text", "text": block}
    if isinstance(block, Picture):
        png = block.path.read_bytes()
        data = base64.b64encode(png).decode()
        return {"kind": "picture", "caption": block.caption, "data": data, "width": _width(png)}
    kind = "details" if isinstance(block, Details) else "contents"
    return {"kind": kind, **vars(block)}


def _width(png: bytes) -> int:
    """Pixels, so that a figure for a column of a paper stays half as wide as a page; 0 if the file
    does not say how many pixels a metre has.
    """
    place = png.find(b"pHYs")
    if place < 0:
        return 0
    [pixels] = struct.unpack(">I", png[16:20])
    [per_metre] = struct.unpack(">I", png[place + 4 : place + 8])
    return round(INCH * pixels / (per_metre * 0.0254))
