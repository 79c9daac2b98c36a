"""From a study's folder to its two reports, analysing and drawing first where that has not been done."""

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from study.analysis import Analysis, analyze
from study.figures import FIGURES, draw_all, save
from study.report.html import as_html
from study.report.page import Picture, page
from study.store import StudyTables, load_records, load_tables, write_derived


def write_report(
    study_dir: Path, plots: Path, say: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Write ``report.md`` and ``report.html`` into ``study_dir``; figures are in ``plots``. The paths written.

    Tables are analysed, and figures drawn, where they are missing or older than a cell. Raises :class:`StudyError`
    where the folder holds no study.
    """
    tables = analysed(study_dir, say)
    pictures = drawn(study_dir, tables, plots, say)
    text = page(study_dir.resolve().name, tables, load_records(study_dir), pictures)
    paths = [study_dir / "report.md", study_dir / "report.html"]
    paths[0].write_text(text)
    paths[1].write_text(as_html(text, f"{study_dir.resolve().name}: report", study_dir))
    return paths


def analysed(study_dir: Path, say: Callable[[str], None]) -> StudyTables:
    """The study's tables with the derived ones up to date."""
    tables = load_tables(study_dir)
    made = [study_dir / f"{part.name}.parquet" for part in fields(Analysis)]
    if all(path.exists() and path.stat().st_mtime >= _newest_cell(study_dir) for path in made):
        return tables
    say("analysing the cells ...")
    for name, table in vars(analyze(tables.cells, tables.metrics, tables.probes)).items():
        write_derived(study_dir, name, table)
    return load_tables(study_dir)


def drawn(
    study_dir: Path, tables: StudyTables, plots: Path, say: Callable[[str], None]
) -> list[Picture]:
    """The study's figures, in the order of a report, up to date."""
    there = [plots / f"{name}.png" for name in FIGURES if (plots / f"{name}.png").exists()]
    if not there or min(path.stat().st_mtime for path in there) < _newest_cell(study_dir):
        say("drawing the figures ...")
        saved = [path for name, figure in draw_all(tables) for path in save(figure, plots, name)]
        there = [path for path in saved if path.suffix == ".png"]
    pictures = []
    for path in there:
        caption = (
            (FIGURES[path.stem].__doc__ or path.stem).strip().split("\n\n")[0].replace("\n", " ")
        )
        source = Path(os.path.relpath(path.resolve(), study_dir.resolve())).as_posix()
        pictures.append(Picture(path.stem, " ".join(caption.split()).replace("``", "`"), source))
    return pictures


def _newest_cell(study_dir: Path) -> float:
    return max(
        (record.stat().st_mtime for record in (study_dir / "cells").glob("*/record.json")),
        default=0.0,
    )
