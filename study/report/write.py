"""Write a study's two reports. Analyze and draw first if needed."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from study.errors import printable
from study.figures import FIGURES
from study.report.current import current_figures, current_tables
from study.report.html import as_html
from study.report.markdown import Block, Picture, as_markdown
from study.report.page import page
from study.report.records import records_of
from study.store import StudyTables
from study.store.output import write_output


def write_report(
    study_dir: Path,
    plots: Path,
    notify: Callable[[str], None] = lambda line: None,
    to: Path | None = None,
    tables: StudyTables | None = None,
) -> list[Path]:
    """Write ``report.md`` and ``report.html`` into ``to`` and return their paths.

    ``to`` is ``study_dir`` by default. ``tables``: of :func:`current_tables`, if they were read
    already. Analyzes the cells, and draws the figures into ``plots``, if
    the results are missing or out of date (:mod:`study.report.current`). ``notify`` gets one line
    for each. Raises :class:`StudyError` if the folder holds no study, or if a file can't be
    written.
    """
    folder = study_dir if to is None else to
    tables = tables or current_tables(study_dir, notify)
    blocks = report_of(study_dir, tables, current_figures(tables, plots, notify), plots, folder)
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
