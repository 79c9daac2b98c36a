"""A study's derived tables and figures, made again if they are out of date.

:mod:`study.store.derived` says what is out of date. ``study analyze``, ``study figures``,
``study report`` and the W&B summary all come through here.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from study.analysis import analyze
from study.figures import FIGURES, draw_all, save
from study.report.markdown import Picture
from study.store import (
    StudyTables,
    are_current,
    derived,
    load_measured,
    with_derived,
    write_derived,
)

Notify = Callable[[str], None]


def current_tables(study_dir: Path, notify: Notify) -> StudyTables:
    """The study's tables. The derived ones are made again if cells or code have changed.

    ``notify`` gets a line if they are. Raises :class:`StudyError` if the folder holds no study.
    """
    measured = load_measured(study_dir)
    if not are_current(study_dir, measured.data_hash):
        notify("analyzing the cells ...")
        made_from = derived.mark(measured.data_hash, derived.TABLES)
        found = analyze(measured.cells, measured.metrics, measured.probes)
        for name, table in vars(found).items():
            write_derived(study_dir, name, table, made_from)
    return with_derived(study_dir, measured)


def draw_figures(tables: StudyTables, plots: Path) -> Iterator[Path]:
    """Draw every figure into ``plots``, as PNG and PDF. Yields the path of each file.

    Figures of an earlier call whose data are gone are deleted.
    """
    drawn = []
    for name, figure in draw_all(tables):
        drawn.append(name)
        yield from save(figure, plots, name, data_hash=tables.data_hash)
    for name in set(derived.read_drawn(plots)) - set(drawn):
        for path in (plots / f"{name}.png", plots / f"{name}.pdf"):
            path.unlink(missing_ok=True)
    plots.mkdir(parents=True, exist_ok=True)
    derived.write_drawn(plots, drawn, derived.mark(tables.data_hash, derived.FIGURES))


def current_figures(
    study_dir: Path, tables: StudyTables, plots: Path, notify: Notify
) -> list[Picture]:
    """The study's figures in ``plots``, in the report's order. Drawn again if cells, distances or
    code have changed; ``notify`` gets a line if they are.
    """
    if not derived.is_current(plots, derived.mark(tables.data_hash, derived.FIGURES)):
        notify("drawing the figures ...")
        for _ in draw_figures(tables, plots):
            pass
    return [_picture(name, study_dir, plots) for name in derived.read_drawn(plots)]


def _picture(name: str, study_dir: Path, plots: Path) -> Picture:
    path = (plots / f"{name}.png").resolve()
    source = Path(os.path.relpath(path, study_dir.resolve())).as_posix()
    return Picture(name, _caption(name), source)


def _caption(figure: str) -> str:
    """The first paragraph of the figure's docstring."""
    first = (FIGURES[figure].__doc__ or figure).strip().split("\n\n")[0]
    return " ".join(first.split()).replace("``", "`")
