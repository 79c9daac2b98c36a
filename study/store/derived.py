"""Whether derived tables and figures are current: made by this code from the cells that are there.

Whatever is derived carries a *mark*, the hash of everything that it was made from: a table in its
Parquet metadata, a folder of figures in :data:`DRAWN`. It is current if the mark is the one that it
would get now. Modification times play no part, so a clone, a copy and a deleted cell are handled
alike.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from study.store.files import write_text
from study.store.records import cell_folders, read_cell
from study.store.schemas import SCHEMAS

TABLES = ("store", "vocabulary", "theory", "analysis")
"""The packages of ``study`` that compute the derived tables."""

FIGURES = (*TABLES, "figures")
"""The packages of ``study`` that draw the figures."""

LIBRARIES = ("numpy", "pandas", "scipy", "matplotlib")
"""Their versions are part of every mark."""

KEY = b"study.made_from"
"""The mark's key in the metadata of a Parquet file."""

DRAWN = "drawn.json"
"""In a folder of figures: their mark, and the names of those that were drawn."""

HASH_DIGITS = 16


def data_hash(study_dir: str | os.PathLike[str]) -> str:
    """The hash of a study's data: its cells, how each ended, their tables, ``distances.parquet``.

    It reads every file once: about a second for 1 GB. A running cell's streams only grow, so their
    size stands for their content.
    """
    found = [(folder, read_cell(folder)) for folder in cell_folders(study_dir)]
    return hash_of_states(
        study_dir, [cell_state(folder, record, {}) for folder, record in found if record]
    )


def hash_of_states(study_dir: str | os.PathLike[str], cells: Sequence[list[Any]]) -> str:
    """:func:`data_hash`, from the :func:`cell_state` of every cell with a record."""
    return _hash([cells, _file_hash(Path(study_dir) / "distances.parquet")])


def cell_state(folder: Path, record: Mapping[str, Any], known: Mapping[str, str]) -> list[Any]:
    """A cell's id, its end and the content of its tables.

    ``record``: as of now. ``known``: the sha256 of tables that were compared with it, by name.
    """
    tables = [known.get(name) or _file_hash(folder / f"{name}.parquet") for name in SCHEMAS]
    streams = [_size(folder / f"{name}.arrows") for name in SCHEMAS]
    return [folder.name, record["status"], _file_hash(folder / "record.json"), tables, streams]


def complete_cells_hash(study_dir: str | os.PathLike[str]) -> str:
    """The mark of ``distances.parquet``: the ids of the complete cells, which it trains again."""
    found = {folder.name: read_cell(folder) for folder in cell_folders(study_dir)}
    return _hash([name for name, cell in found.items() if cell and cell["status"] == "complete"])


def mark(data: str, packages: Sequence[str]) -> str:
    """The mark of what ``packages`` of this code (:data:`TABLES`, :data:`FIGURES`) make from
    ``data``, which is a :func:`data_hash`.
    """
    return _hash([data, _code(tuple(packages))])


def is_current(made: Path, expected: str) -> bool:
    """Whether ``made``, a derived table or a folder of figures, exists and has the mark
    ``expected``.
    """
    return _mark_of(made) == expected


def write_drawn(plots: Path, names: Iterable[str], made_from: str) -> None:
    """Note that ``plots`` now holds the figures ``names``, drawn with the mark ``made_from``."""
    text = json.dumps({"made_from": made_from, "figures": list(names)}, indent=2)
    write_text(plots / DRAWN, text + "\n")


def read_drawn(plots: Path) -> list[str]:
    """The names of the figures in ``plots``, in the order of drawing; empty without a note."""
    return list(_note(plots).get("figures", []))


def _mark_of(made: Path) -> str | None:
    if made.suffix != ".parquet":
        note = _note(made)
        there = all((made / f"{name}.png").exists() for name in note.get("figures", []))
        return note.get("made_from") if there else None
    try:
        metadata = pq.read_schema(made).metadata or {}
    except (OSError, ValueError):  # absent or damaged: pyarrow's errors are ValueErrors
        return None
    return metadata[KEY].decode() if KEY in metadata else None


def _note(plots: Path) -> dict[str, Any]:
    try:
        found = json.loads((plots / DRAWN).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    whole = isinstance(found, dict) and isinstance(found.get("figures", []), list)
    return found if whole else {}


def _file_hash(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


@cache
def _code(packages: tuple[str, ...]) -> str:
    """The hash of the sources of ``packages`` and of the versions of :data:`LIBRARIES`."""
    root = Path(__file__).parents[1]
    sources = sorted(path for package in packages for path in (root / package).rglob("*.py"))
    files = [[path.relative_to(root).as_posix(), _file_hash(path)] for path in sources]
    return _hash([files, [_version(library) for library in LIBRARIES]])


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:HASH_DIGITS]
