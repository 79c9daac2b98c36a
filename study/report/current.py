"""A study's derived tables and figures, made again if they are out of date.

:mod:`study.store.derived` says what is out of date. ``study analyze``, ``study figures``,
``study report`` and the W&B summary all come through here.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from study.analysis import analyze
from study.errors import StudyError, one_line
from study.figures import FIGURES, draw_all, save
from study.store import (
    ANALYSED,
    StorageError,
    StudyTables,
    are_current,
    derived,
    load_measured,
    with_derived,
    write_derived,
)
from study.store.files import make_folder, remove
from study.vocabulary.quantities import SITES, STATS
from study.vocabulary.scaling import RULES
from study.vocabulary.verdicts import VERDICTS

Notify = Callable[[str], None]

WORDS = {"verdict": VERDICTS, "site": SITES, "stat": STATS, "scaling": RULES}
"""The words that each of these columns of a derived table may hold."""


def current_tables(study_dir: Path, notify: Notify, must_write: bool = False) -> StudyTables:
    """The study's tables. The derived ones are made again if cells or code have changed.

    ``notify`` gets a line if they are, and another if they can't be written: then they are used
    and not kept, so that a study can be read where nothing can be written. Raises
    :class:`StudyError` if the folder holds no study, and with ``must_write`` if the tables can't be
    written.
    """
    measured = load_measured(study_dir)
    if are_current(study_dir, measured.data_hash):
        tables = _with_derived(study_dir, measured)
        if isinstance(tables, StudyTables) and _has_known_words(tables):
            return tables
    notify("analyzing the cells ...")
    found = vars(analyze(measured.cells, measured.metrics, measured.probes))
    try:
        _write_tables(study_dir, found, derived.mark(measured.data_hash, derived.TABLES))
    except StorageError as error:
        if must_write:
            raise
        notify(f"{error} (the tables are used, but not kept)")
    tables = _with_derived(study_dir, measured)
    if not isinstance(tables, StudyTables):
        raise StudyError(
            f"a table of {study_dir} is damaged ({one_line(tables)}): delete "
            f"{study_dir / 'distances.parquet'}, and run study distances again"
        )
    return replace(tables, **found)


def _with_derived(study_dir: Path, measured: StudyTables) -> StudyTables | Exception:
    """``measured`` with the derived tables; the error if one of their files is damaged."""
    try:
        return with_derived(study_dir, measured)
    except (OSError, ValueError, KeyError) as error:  # those of pyarrow and pandas
        return error


def _write_tables(study_dir: Path, tables: dict[str, pd.DataFrame], made_from: str) -> None:
    for name, table in tables.items():
        write_derived(study_dir, name, table, made_from)


def _has_known_words(tables: StudyTables) -> bool:
    """Whether the analysis could have written the derived tables. Others may have edited them."""

    def known(table: pd.DataFrame, column: str, words: Any) -> bool:
        return column not in table or set(table[column].dropna().astype(str)) <= set(words)

    frames = [getattr(tables, name) for name in ANALYSED]
    return all(known(table, column, words) for table in frames for column, words in WORDS.items())


def draw_figures(
    tables: StudyTables, plots: Path, left_out: Notify | None = None
) -> Iterator[Path]:
    """Draw every figure into ``plots``, as PNG and PDF. Yields the path of each file.

    ``left_out`` gets a line for each figure whose data are missing; without it, a warning does.
    Figures of an earlier call whose data are gone are deleted.
    """
    drawn = []
    for name, figure in draw_all(tables, left_out) if left_out else draw_all(tables):
        drawn.append(name)
        yield from save(figure, plots, name, data_hash=tables.data_hash)
    for name in {name for name in FIGURES if name in derived.read_drawn(plots)} - set(drawn):
        for path in (plots / f"{name}.png", plots / f"{name}.pdf"):
            remove(path)
    make_folder(plots)
    derived.write_drawn(plots, drawn, derived.mark(tables.data_hash, derived.FIGURES))


def current_figures(tables: StudyTables, plots: Path, notify: Notify) -> list[str]:
    """The names of the study's figures in ``plots``, in the report's order.

    Drawn again if cells, distances or code have changed, or if a file is not one that
    :func:`draw_figures` wrote; ``notify`` gets a line if they are.
    """
    made_from = derived.mark(tables.data_hash, derived.FIGURES)
    if not (derived.is_current(plots, made_from) and _are_files(plots)):
        notify("drawing the figures ...")
        for _ in draw_figures(tables, plots, left_out=lambda line: None):
            pass
    return derived.read_drawn(plots)


def _are_files(plots: Path) -> bool:
    """Whether the figures are known ones, and files: a link may lead to any file."""
    names = derived.read_drawn(plots)
    paths = [plots / f"{name}.{kind}" for name in names for kind in ("png", "pdf")]
    return all(name in FIGURES for name in names) and not any(path.is_symlink() for path in paths)
