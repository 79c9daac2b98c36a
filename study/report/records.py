"""The records of a study for its report, those of damaged cells among them."""

from pathlib import Path
from typing import Any

from study.store import StudyTables, cell_folders, damage, read_cell


def records_of(study_dir: Path, tables: StudyTables) -> list[dict[str, Any]]:
    """The record of every cell. One that is not in ``tables`` is ``unreadable``, with the reason in
    ``error``.
    """
    used = set(tables.cells["cell_id"].astype(str))
    found = []
    for folder in cell_folders(study_dir):
        record = read_cell(folder)
        if record is None:
            continue
        if record["status"] != "unreadable" and folder.name not in used:
            record |= {"status": "unreadable", "error": damage(folder, record) or "left out"}
        found.append(record)
    return found
