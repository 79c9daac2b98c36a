"""A study as tidy tables: those of its cells, and those computed from them."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from study.store import derived
from study.store.cell_tables import load_cell_table
from study.store.cells import cell_row, cells_of, warn_of_damage
from study.store.files import replacing
from study.store.records import cell_folders, read_cell
from study.store.schemas import ANALYSED, DERIVED, DISTANCES, SCHEMAS, TEXT
from study.store.streams import Damaged
from study.vocabulary.statuses import ENDED

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyTables:
    """A study as pandas frames. Missing is NaN; strings that repeat are categorical.

    - ``cells``: a row per cell, with its configuration and how it ended;
    - ``metrics``: a row per cell and step;
    - ``probes``: a row per cell, step, layer, site and batch, with a column per statistic;
    - ``truncations``: a row per cell and lower rank, if ``probes.truncations`` is set;
    - ``exponents``, ``stable``, ``rates``, ``losses``, ``distances``: written by ``study analyze``
      and ``study distances``; empty before;
    - ``data_hash``: of the study's data when they were read (:mod:`study.store.derived`).
    """

    cells: pd.DataFrame
    metrics: pd.DataFrame
    probes: pd.DataFrame
    exponents: pd.DataFrame
    stable: pd.DataFrame = field(default_factory=pd.DataFrame)
    rates: pd.DataFrame = field(default_factory=pd.DataFrame)
    losses: pd.DataFrame = field(default_factory=pd.DataFrame)
    distances: pd.DataFrame = field(default_factory=pd.DataFrame)
    truncations: pd.DataFrame = field(default_factory=pd.DataFrame)
    data_hash: str = ""


def load_tables(study_dir: str | os.PathLike[str]) -> StudyTables:
    """All tables of a study. Running and diverged cells are included as far as they got.

    A warning names the derived tables that are out of date (:func:`with_derived`). Raises
    :class:`StudyError` if the folder holds no study.
    """
    folder = Path(study_dir)
    return with_derived(folder, load_measured(folder))


def load_measured(folder: Path) -> StudyTables:
    """The tables of a study's cells. The derived ones stay empty.

    Cells with a damaged table are left out, and a warning names them. Raises :class:`StudyError`
    if the folder holds no study.
    """
    read = {found.row["cell_id"]: found for found in map(_read, cell_folders(folder)) if found}
    data_hash = derived.hash_of_states(folder, [found.state for found in read.values()])
    cells = cells_of(folder, [found.row for found in read.values()])
    damaged = {cell: read[cell].damage for cell in cells["cell_id"] if read[cell].damage}
    warn_of_damage(folder, damaged)
    cells = cells[~cells["cell_id"].isin(list(damaged))].reset_index(drop=True)
    tables = {cell: read[cell].tables for cell in cells["cell_id"]}
    del read
    frames = {name: _joined(name, tables) for name in SCHEMAS}
    return StudyTables(cells, **frames, exponents=pd.DataFrame(), data_hash=data_hash)


def with_derived(folder: Path, measured: StudyTables) -> StudyTables:
    """``measured`` with the derived tables on disk; a warning names those that are out of date.

    Distances of deleted cells are left out.
    """
    _warn_of_outdated(folder, measured.data_hash)
    paths = {name: folder / f"{name}.parquet" for name in DERIVED}
    frames = {
        name: pd.read_parquet(path) if path.exists() else pd.DataFrame()
        for name, path in paths.items()
    }
    frames["distances"] = _of_known_cells(frames["distances"], measured.cells)
    return replace(measured, **frames)  # type: ignore[arg-type]


def are_current(folder: Path, data_hash: str) -> bool:
    """Whether all tables of ``study analyze`` are made by this code from data of this hash."""
    return not _outdated(folder, data_hash, ANALYSED)


def write_derived(
    study_dir: str | os.PathLike[str], name: str, table: pd.DataFrame, made_from: str = ""
) -> Path:
    """Replace one of the study's :data:`~study.store.schemas.DERIVED` tables. Returns its file.

    ``made_from``: its :func:`~study.store.derived.mark`, kept in the file's metadata.
    """
    path = Path(study_dir) / f"{name}.parquet"
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    metadata = {**(arrow.schema.metadata or {}), derived.KEY: made_from.encode()}
    with replacing(path) as draft:
        pq.write_table(arrow.replace_schema_metadata(metadata), draft, write_page_checksum=True)
    return path


def _outdated(folder: Path, data_hash: str, names: Sequence[str]) -> list[str]:
    """Those of the derived tables ``names`` that are not current, absent ones among them."""
    analysed = derived.mark(data_hash, derived.TABLES)
    marks = dict.fromkeys(names, analysed)
    if DISTANCES in marks:
        marks[DISTANCES] = derived.complete_cells_hash(folder)
    paths = {name: folder / f"{name}.parquet" for name in names}
    return [name for name in names if not derived.is_current(paths[name], marks[name])]


def _warn_of_outdated(folder: Path, data_hash: str) -> None:
    there = [name for name in DERIVED if (folder / f"{name}.parquet").exists()]
    found = _outdated(folder, data_hash, there)
    for command, names in (
        ("analyze", [name for name in found if name != DISTANCES]),
        ("distances", [name for name in found if name == DISTANCES]),
    ):
        if names:
            verb = "is" if len(names) == 1 else "are"
            _log.warning(
                "%s of %s %s out of date: run `study %s %s`",
                *(", ".join(names), folder, verb, command, folder),
            )


def _of_known_cells(distances: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """The distances of the cells that there are, and of rank-free runs, which have no cell."""
    if distances.empty:
        return distances
    ids = distances["cell_id"].astype(str)
    known = ids.isin(set(cells["cell_id"].astype(str))) | ids.str.startswith("free ")
    return distances[known].reset_index(drop=True)


@dataclass(frozen=True)
class _Cell:
    """A cell, read once: its row of ``cells``, its tables by name, and its part of the data's hash.

    ``damage``: why its tables can't be used; empty if they can.
    """

    row: dict[str, Any]
    state: list[Any]
    tables: dict[str, pa.Table]
    damage: str = ""


def _read(folder: Path) -> _Cell | None:
    """The cell in ``folder``; None if it has no record."""
    record = read_cell(folder)
    if record is None:
        return None
    row, recorded = cell_row(record), record.get("tables", {})
    hashes = {name: about["sha256"] for name, about in recorded.items()}
    # Before the tables: a cell that trains on makes the hash outdated.
    state = derived.cell_state(folder, record, hashes if record["status"] in ENDED else {})
    try:
        tables = {name: load_cell_table(folder, name, None, record) for name in SCHEMAS}
    except Damaged as error:
        return _Cell(row, derived.cell_state(folder, record, {}), {}, str(error))
    return _Cell(row, state, tables)


def _joined(name: str, tables: dict[str, dict[str, pa.Table]]) -> pd.DataFrame:
    """One table of all cells, with their ids as the first column. Takes it out of ``tables``."""
    empty = SCHEMAS[name].empty_table().add_column(0, "cell_id", pa.array([], TEXT))
    parts = [_with_id(cell, of_cell.pop(name)) for cell, of_cell in tables.items()]
    whole = pa.concat_tables([empty, *parts]).unify_dictionaries()
    del parts
    return whole.to_pandas(split_blocks=True, self_destruct=True)


def _with_id(cell_id: str, table: pa.Table) -> pa.Table:
    ids = pa.DictionaryArray.from_arrays(pa.array([0] * len(table), pa.int32()), [cell_id])
    return table.add_column(0, "cell_id", ids)
