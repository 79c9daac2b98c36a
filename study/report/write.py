"""Write a study's two reports. Analyze and draw first if needed."""

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from study.analysis import Analysis, analyze
from study.figures import FIGURES, draw_all, save
from study.report.html import as_html
from study.report.markdown import Picture
from study.report.page import page
from study.store import StudyTables, load_records, load_tables, write_derived


def write_report(
    study_dir: Path, plots: Path, notify: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Write ``report.md`` and ``report.html`` into ``study_dir`` and return their paths.

    Analyzes the cells, and draws the figures into ``plots``, if the results are missing or older
    than a cell. ``notify`` gets one line for each. Raises :class:`StudyError` if the folder holds
    no study.
    """
    tables = current_tables(study_dir, notify)
    pictures = current_figures(study_dir, tables, plots, notify)
    name = study_dir.resolve().name
    text = page(name, tables, load_records(study_dir), pictures)
    paths = [study_dir / "report.md", study_dir / "report.html"]
    paths[0].write_text(text)
    paths[1].write_text(as_html(text, f"{name}: report", study_dir))
    return paths


def current_tables(study_dir: Path, notify: Callable[[str], None]) -> StudyTables:
    """The study's tables. Derived tables are made again if a cell is newer."""
    tables = load_tables(study_dir)
    derived = [study_dir / f"{part.name}.parquet" for part in fields(Analysis)]
    newest = _newest_cell(study_dir)
    if all(path.exists() and path.stat().st_mtime >= newest for path in derived):
        return tables
    notify("analyzing the cells ...")
    for name, table in vars(analyze(tables.cells, tables.metrics, tables.probes)).items():
        write_derived(study_dir, name, table)
    return load_tables(study_dir)


def current_figures(
    study_dir: Path, tables: StudyTables, plots: Path, notify: Callable[[str], None]
) -> list[Picture]:
    """The study's figures in ``plots``, in the report's order. Drawn again if a cell is newer."""
    paths = [path for name in FIGURES if (path := plots / f"{name}.png").exists()]
    if not paths or min(path.stat().st_mtime for path in paths) < _newest_cell(study_dir):
        notify("drawing the figures ...")
        saved = [path for name, figure in draw_all(tables) for path in save(figure, plots, name)]
        paths = [path for path in saved if path.suffix == ".png"]
    pictures = []
    for path in paths:
        source = Path(os.path.relpath(path.resolve(), study_dir.resolve())).as_posix()
        pictures.append(Picture(path.stem, _caption(path.stem), source))
    return pictures


def _caption(figure: str) -> str:
    """The first paragraph of the figure's docstring."""
    first = (FIGURES[figure].__doc__ or figure).strip().split("\n\n")[0]
    return " ".join(first.split()).replace("``", "`")


def _newest_cell(study_dir: Path) -> float:
    records = (study_dir / "cells").glob("*/record.json")
    return max((record.stat().st_mtime for record in records), default=0.0)
