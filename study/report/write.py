"""Write a study's two reports. Analyze and draw first if needed."""

from collections.abc import Callable
from pathlib import Path

from study.report.current import current_figures, current_tables
from study.report.html import as_html
from study.report.page import page
from study.store import load_records


def write_report(
    study_dir: Path, plots: Path, notify: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Write ``report.md`` and ``report.html`` into ``study_dir`` and return their paths.

    Analyzes the cells, and draws the figures into ``plots``, if the results are missing or out of
    date (:mod:`study.report.current`). ``notify`` gets one line for each. Raises
    :class:`StudyError` if the folder holds no study.
    """
    tables = current_tables(study_dir, notify)
    pictures = current_figures(study_dir, tables, plots, notify)
    name = study_dir.resolve().name
    text = page(name, tables, load_records(study_dir), pictures)
    paths = [study_dir / "report.md", study_dir / "report.html"]
    paths[0].write_text(text)
    paths[1].write_text(as_html(text, f"{name}: report", study_dir))
    return paths
