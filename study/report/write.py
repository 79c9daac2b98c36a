"""A study's figures and its two reports, as files."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from study.errors import printable
from study.figures import FIGURES, draw_all, save
from study.report.html import as_html
from study.report.markdown import Block, Picture, as_markdown
from study.report.page import page
from study.report.records import records_of
from study.store import StudyTables, write_output
from study.store.files import remove


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
    return page(study_dir.resolve().name, tables, records_of(study_dir, tables), pictures)


def _picture(name: str, plots: Path, folder: Path) -> Picture:
    path = plots / f"{name}.png"
    source = Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    return Picture(name, _caption(name), path, source)


def _caption(figure: str) -> str:
    """The first paragraph of the figure's docstring."""
    first = (FIGURES[figure].__doc__ or figure).strip().split("\n\n")[0]
    return " ".join(first.split()).replace("``", "`")
