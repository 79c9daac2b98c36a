"""The record of a cell, ``record.json``: its configuration, its sources, and how it ended."""

import json
import os
from pathlib import Path
from typing import Any

from study.errors import StudyError
from study.store.files import is_held
from study.store.streams import last_metrics
from study.store.writer import LOCK
from study.vocabulary import statuses

STATUSES = tuple(statuses.STATUSES)
"""The states of a cell, in the order in which counts list them."""

ADAPTER = "adapter"
"""The folder of a cell's trained adapter in PEFT's format, if ``train.save_adapter`` is set."""


def cell_folders(study_dir: str | os.PathLike[str]) -> list[Path]:
    """The folders of a study's cells, by id. Some may have no record yet."""
    return sorted((Path(study_dir) / "cells").glob("*"))


def read_cell(cell_folder: Path) -> dict[str, Any] | None:
    """A cell's record as of now; None if it has none.

    For a running cell, ``steps_done`` and ``seconds`` are those of the last row on disk.
    """
    record = _read_record(cell_folder)
    if record is None or record["status"] != "running":
        return record
    last = last_metrics(cell_folder / "metrics.arrows")
    so_far = {} if last is None else {"steps_done": last["step"], "seconds": last["seconds"]}
    status = "running" if is_held(cell_folder / LOCK) else "interrupted"
    return record | so_far | {"status": status}


def is_done(cell_folder: Path, with_adapter: bool = False) -> bool:
    """Whether a cell needs no training: it is complete, or it would end in the same way again.

    ``with_adapter``: a complete cell without its trained adapter needs training.
    """
    record = _read_record(cell_folder)
    if record is None:
        return False
    if with_adapter and record["status"] == "complete":
        return (cell_folder / ADAPTER).is_dir()
    return record["status"] in statuses.DONE


def load_records(study_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Every cell's record as it is on disk."""
    return [record for _, record in _recorded(study_dir)]


def find_cell(study_dir: str | os.PathLike[str], cell: str) -> tuple[Path, dict[str, Any]]:
    """The folder and record of the cell whose id begins with ``cell``.

    Raises :class:`StudyError` if the folder holds no study, or if no cell or several match.
    """
    found = _recorded(study_dir)
    if not found:
        raise no_study(Path(study_dir))
    hits = [(folder, record) for folder, record in found if folder.name.startswith(cell)]
    if len(hits) != 1:
        which, begin = ("no cell", "begins") if not hits else (f"{len(hits)} cells", "begin")
        ids = ", ".join(folder.name for folder, _ in (hits or found)[:8])
        more = ", ..." if len(hits or found) > 8 else ""
        raise StudyError(f"{which} of {study_dir} {begin} with {cell!r}: choose from {ids}{more}")
    return hits[0]


def no_study(folder: Path) -> StudyError:
    """The error for a folder without cells. It names the studies nearby."""
    near = [
        cells.parent for place in (folder, folder.parent) for cells in sorted(place.glob("*/cells"))
    ]
    there = f", or choose from {', '.join(map(str, near))}" if near else ""
    return StudyError(f"no study in {folder}: train one with `study train name=...`{there}")


def _recorded(study_dir: str | os.PathLike[str]) -> list[tuple[Path, dict[str, Any]]]:
    return [
        (folder, record)
        for folder in cell_folders(study_dir)
        if (record := _read_record(folder)) is not None
    ]


def _read_record(cell_folder: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((cell_folder / "record.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return record
