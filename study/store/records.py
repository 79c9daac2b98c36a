"""The record of a cell, ``record.json``: its configuration, its sources, and how it ended."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from study.errors import StudyError
from study.store.archive import ARCHIVE, unpack
from study.store.claims import is_claimed
from study.store.record_format import parse
from study.store.streams import Damaged, last_metrics, verified
from study.vocabulary import statuses

STATUSES = tuple(statuses.STATUSES)
"""The states of a cell, in the order in which counts list them."""

RECORD = "record.json"
ADAPTER = "adapter"
"""The folder of a cell's trained adapter in PEFT's format, if ``train.save_adapter`` is set."""
CHECKPOINTS = "checkpoints"
"""The folder of a cell's checkpoints while it trains."""


def cell_folders(study_dir: str | os.PathLike[str]) -> list[Path]:
    """The folders of a study's cells, by id. Some may have no record yet, or an unreadable one.

    Those of an archived study are extracted first (:func:`~study.store.archive.unpack`).
    """
    unpack(Path(study_dir))
    cells = Path(study_dir) / "cells"
    try:
        with os.scandir(cells) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return []
    return [cells / name for name in sorted(names) if not name.startswith(".")]


def read_record(cell_folder: Path) -> dict[str, Any] | None:
    """A cell's record as it is on disk; None if there is none.

    If it can't be used, a record with the status ``unreadable``, the reason in ``error``, and empty
    ``config`` and ``started``. The cell's id is the name of its folder, never one from the file.
    """
    try:
        record = parse(cell_folder / RECORD)
    except Damaged as error:
        return _unreadable(cell_folder, str(error))
    if record is not None and record["cell_id"] != cell_folder.name:
        return _unreadable(cell_folder, f"copied from the cell {record['cell_id']!r}")
    return record


def read_cell(cell_folder: Path) -> dict[str, Any] | None:
    """A cell's record as of now; None if it has none.

    - For a cell that has not ended, ``steps_done`` and ``seconds`` are those of the last row on
      disk, and it is ``running`` or, without a live process, ``interrupted``.
    - A cell that has ended is ``unreadable``, with the reason in ``error``, if a table is missing
      or has another size. The content of tables is compared when they are read.
    """
    record = read_record(cell_folder)
    if record is None or record["status"] == "unreadable":
        return record
    if record["status"] in statuses.ENDED:
        problem = _missing(cell_folder, record)
        return record | {"status": "unreadable", "error": problem} if problem else record
    last = last_metrics(cell_folder / "metrics.arrows")
    so_far = {} if last is None else {"steps_done": last["step"], "seconds": last["seconds"]}
    status = "running" if is_claimed(cell_folder) else "interrupted"
    return record | so_far | {"status": status}


def is_done(cell_folder: Path, with_adapter: bool = False) -> bool:
    """Whether a cell needs no training: it is complete, or it would end in the same way again.

    It reads the tables: a cell with a missing or damaged one needs training. ``with_adapter``: a
    complete cell without its trained adapter does too, or with files of another size there.
    """
    record = read_record(cell_folder)
    if record is None or record["status"] not in statuses.DONE:
        return False
    if with_adapter and record["status"] == "complete" and not _has_adapter(cell_folder, record):
        return False
    return damage(cell_folder, record) is None


def damage(cell_folder: Path, record: Mapping[str, Any]) -> str | None:
    """The first table of an ended cell that is missing or damaged, in words; None if there is none.

    It compares sizes and hashes. Early records have none: then only the presence of ``metrics`` is
    checked.
    """
    if missing := _missing(cell_folder, record):
        return missing
    try:
        for name, expected in record.get("tables", {}).items():
            verified(cell_folder / f"{name}.parquet", expected)
    except Damaged as error:
        return str(error)
    return None


def adapter_damage(cell_folder: Path, record: Mapping[str, Any]) -> str | None:
    """The first file of an ended cell's adapter that is missing or damaged, in words."""
    try:
        for name, expected in record.get("adapter", {}).items():
            verified(cell_folder / ADAPTER / name, expected)
    except Damaged as error:
        return f"{ADAPTER}/{error}"
    return None


def load_records(study_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Every cell's record as it is on disk, without the unreadable ones."""
    return [record for _, record in _recorded(study_dir) if record["status"] != "unreadable"]


def find_cell(study_dir: str | os.PathLike[str], cell: str) -> tuple[Path, dict[str, Any]]:
    """The folder and record of the cell whose id begins with ``cell``.

    Raises :class:`StudyError` if the folder holds no study, if no cell or several match, and if
    the cell's record is unreadable.
    """
    recorded = _recorded(study_dir)
    if not recorded:
        raise no_study(Path(study_dir))
    found = [(folder, record) for folder, record in recorded if record["status"] != "unreadable"]
    hits = [(folder, record) for folder, record in found if folder.name.startswith(cell)]
    hits = [hit for hit in hits if hit[0].name == cell] or hits
    if len(hits) == 1:
        return hits[0]
    for folder, record in recorded:
        if not hits and cell and folder.name.startswith(cell):
            raise StudyError(
                f"cell {folder.name} of {study_dir} is unreadable ({record['error']}): "
                "repeat the command that trained it, which trains it afresh"
            )
    which, begin = ("no cell", "begins") if not hits else (f"{len(hits)} cells", "begin")
    ids = ", ".join(folder.name for folder, _ in (hits or found)[:8])
    more = ", ..." if len(hits or found) > 8 else ""
    raise StudyError(f"{which} of {study_dir} {begin} with {cell!r}: choose from {ids}{more}")


def no_study(folder: Path) -> StudyError:
    """The error for a folder without cells. It names the studies nearby."""
    near = {
        cells.parent
        for place in (folder, folder.parent)
        for name in ("cells", ARCHIVE)
        for cells in place.glob(f"*/{name}")
    }
    there = f", or choose from {', '.join(map(str, sorted(near)))}" if near else ""
    return StudyError(f"no study in {folder}: train one with `study train name=...`{there}")


def _missing(cell_folder: Path, record: Mapping[str, Any]) -> str | None:
    """:func:`damage`, by names and sizes only."""
    tables = record.get("tables")
    if tables is None:
        had_rows = record.get("steps_done") is not None
        there = (cell_folder / "metrics.parquet").is_file()
        return "metrics.parquet is missing" if had_rows and not there else None
    for name, expected in tables.items():
        try:
            size = (cell_folder / f"{name}.parquet").stat().st_size
        except OSError:
            return f"{name}.parquet is missing"
        if size != expected["bytes"]:
            return f"{name}.parquet has {size} bytes instead of {expected['bytes']}"
    return None


def _has_adapter(cell_folder: Path, record: Mapping[str, Any]) -> bool:
    folder = cell_folder / ADAPTER
    try:
        return folder.is_dir() and all(
            (folder / name).stat().st_size == expected["bytes"]
            for name, expected in record.get("adapter", {}).items()
        )
    except OSError:
        return False


def _unreadable(cell_folder: Path, reason: str) -> dict[str, Any]:
    return {
        "cell_id": cell_folder.name,
        "study": cell_folder.parents[1].name,
        "status": "unreadable",
        "error": reason,
        "started": "",
        "config": {},
    }


def _recorded(study_dir: str | os.PathLike[str]) -> list[tuple[Path, dict[str, Any]]]:
    return [
        (folder, record)
        for folder in cell_folders(study_dir)
        if (record := read_record(folder)) is not None
    ]
