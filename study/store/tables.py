"""The measured tables of one cell and of a study, wherever they are: streams while a cell trains,
Parquet files when it has ended, one Parquet file per table in an archived study.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from study.errors import StudyError, one_line
from study.store.cells import cell_row, cells_of, warn_of_damage
from study.store.files import Damaged
from study.store.records import cell_folders, is_archived, read_cell, read_record
from study.store.rows import SCHEMAS, TEXT, read_parquet, read_stream, write_parquet
from study.vocabulary.statuses import ENDED

DISTANCES = "distances"
"""The table of ``study distances``, which trains. It lies in the study's folder."""

_ID = pa.field("cell_id", TEXT)


def load_cell_table(
    cell_folder: Path,
    name: str,
    columns: Sequence[str] | None = None,
    record: Mapping[str, Any] | None = None,
) -> pa.Table:
    """One of :data:`SCHEMAS` as far as it is written, in the order of writing; all columns or some.

    ``record``: the cell's record, if the caller has read it. If it says that the cell has ended,
    the table is read from Parquet and compared with the record's hash, otherwise from its stream.
    Empty if the table has no rows. Raises :class:`Damaged` if the table is not what was written, or
    if the record is unreadable.
    """
    if is_archived(cell_folder):
        return _of_archive(cell_folder, name, columns)
    stream, finished = cell_folder / f"{name}.arrows", cell_folder / f"{name}.parquet"
    if record is None or (record["status"] not in ENDED and not stream.exists()):
        record = read_record(cell_folder) or {"status": "running"}  # it may have ended just now
    if record["status"] == "unreadable":
        raise Damaged(record["error"])
    expected = record.get("tables", {}).get(name)
    if record["status"] in ENDED and (expected or finished.exists()):
        return read_parquet(finished, SCHEMAS[name], columns, expected)
    return read_stream(stream, columns)


def rows_of(cell_folder: Path, table: str) -> pd.DataFrame:
    """:func:`load_cell_table` as a frame."""
    return load_cell_table(cell_folder, table).to_pandas()


@dataclass(frozen=True)
class _ArchivedTable:
    """A table of an archive: its rows, and where those of each cell begin and how many they are."""

    rows: pa.Table
    places: Mapping[str, tuple[int, int]]

    def of(self, cell_id: str) -> pa.Table:
        """The rows of a cell."""
        return self.rows.slice(*self.places.get(cell_id, (0, 0)))


def _read_archived(path: Path) -> _ArchivedTable:
    """Raises :class:`StudyError` if the file is not what :mod:`study.store.archive` wrote."""
    schema = SCHEMAS[path.stem]
    if not path.exists():
        return _ArchivedTable(schema.empty_table(), {})
    try:
        table = read_parquet(path, schema.insert(0, _ID)).unify_dictionaries().combine_chunks()
        ids = table.column(0).combine_chunks()
        codes = ids.indices.to_numpy()
        starts = np.flatnonzero(np.diff(codes, prepend=-1))
        sizes = np.diff(starts, append=len(codes)).tolist()
        cells = ids.dictionary.take(pa.array(codes[starts])).to_pylist()
        if len(set(cells)) < len(cells):
            raise Damaged("the rows of a cell are not together")
    except (Damaged, ValueError) as error:
        raise StudyError(f"{path} is damaged: get it again ({error})") from None
    places = dict(zip(cells, zip(starts.tolist(), sizes, strict=True), strict=True))
    return _ArchivedTable(table.drop_columns(["cell_id"]), places)


def _of_archive(cell_folder: Path, name: str, columns: Sequence[str] | None) -> pa.Table:
    path = cell_folder.parents[1] / f"{name}.parquet"
    about = path.stat() if path.exists() else None
    state = (about.st_mtime_ns, about.st_size) if about else (0, 0)
    rows = _kept(path, *state).of(cell_folder.name)
    return rows if columns is None else rows.select(list(columns))


@lru_cache(maxsize=len(SCHEMAS))
def _kept(path: Path, _modified: int, _size: int) -> _ArchivedTable:
    """A table that is read once for all cells. Asked again when the file has changed."""
    return _read_archived(path)


@dataclass(frozen=True)
class StudyTables:
    """A study as pandas frames. Missing is NaN; strings that repeat are categorical.

    - ``cells``: a row per cell, with its configuration and how it ended;
    - ``metrics``: a row per cell and step;
    - ``probes``: a row per cell, step, layer, site and batch, with a column per statistic;
    - ``truncations``: a row per cell and lower rank, if ``probes.truncations`` is set;
    - ``distances``: to the limit of infinite rank, if ``study distances`` has measured them;
    - ``exponents``, ``stable``, ``rates``, ``losses``: what :func:`study.analysis.load_tables`
      computes from the others; empty before.
    """

    cells: pd.DataFrame
    metrics: pd.DataFrame
    probes: pd.DataFrame
    exponents: pd.DataFrame = field(default_factory=pd.DataFrame)
    stable: pd.DataFrame = field(default_factory=pd.DataFrame)
    rates: pd.DataFrame = field(default_factory=pd.DataFrame)
    losses: pd.DataFrame = field(default_factory=pd.DataFrame)
    distances: pd.DataFrame = field(default_factory=pd.DataFrame)
    truncations: pd.DataFrame = field(default_factory=pd.DataFrame)


def load_measured(study_dir: str | os.PathLike[str]) -> StudyTables:
    """The measured tables of a study. Running and diverged cells are included as far as they got.

    Cells with a damaged table are left out, and a warning names them. Raises :class:`StudyError`
    if the folder holds no study, or if its archive or the table of distances is damaged.
    """
    folder = Path(study_dir)
    archive: dict[str, _ArchivedTable] = {}
    rows: list[dict[str, Any]] = []
    tables: dict[str, dict[str, pa.Table]] = {}
    damaged: dict[str, str] = {}
    for cell in cell_folders(folder):
        if (record := read_cell(cell)) is None:
            continue
        rows.append(cell_row(record))
        try:
            tables[cell.name] = _tables_of(cell, record, archive)
        except Damaged as error:
            damaged[cell.name] = str(error)
    cells = cells_of(folder, rows)
    warn_of_damage(folder, {cell: damaged[cell] for cell in cells["cell_id"] if cell in damaged})
    cells = cells[~cells["cell_id"].isin(list(damaged))].reset_index(drop=True)
    tables = {cell: tables[cell] for cell in cells["cell_id"]}
    del archive
    frames = {name: _joined(name, tables) for name in SCHEMAS}
    distances = distances_of(folder)
    if len(distances):  # those of deleted cells are left out; rank-free runs have no cell
        ids = distances["cell_id"].astype(str)
        known = ids.isin(set(cells["cell_id"].astype(str))) | ids.str.startswith("free ")
        distances = distances[known].reset_index(drop=True)
    return StudyTables(cells, **frames, distances=distances)


def _tables_of(
    cell: Path, record: Mapping[str, Any], archive: dict[str, _ArchivedTable]
) -> dict[str, pa.Table]:
    """The tables of a cell by name. ``archive``: the tables of its study's archive, read once."""
    if not is_archived(cell):
        return {name: load_cell_table(cell, name, None, record) for name in SCHEMAS}
    if record["status"] == "unreadable":
        raise Damaged(record["error"])
    if not archive:
        archive |= {name: _read_archived(cell.parents[1] / f"{name}.parquet") for name in SCHEMAS}
    return {name: table.of(cell.name) for name, table in archive.items()}


def _joined(name: str, tables: dict[str, dict[str, pa.Table]]) -> pd.DataFrame:
    """One table of all cells, with their ids as the first column. Takes it out of ``tables``."""
    empty = SCHEMAS[name].empty_table().add_column(0, _ID, pa.array([], TEXT))
    parts = [with_id(cell, of_cell.pop(name)) for cell, of_cell in tables.items()]
    whole = pa.concat_tables([empty, *parts]).unify_dictionaries()
    del parts
    return whole.to_pandas(split_blocks=True, self_destruct=True)


def with_id(cell_id: str, table: pa.Table) -> pa.Table:
    """``table`` with the id of its cell as the first column."""
    ids = pa.DictionaryArray.from_arrays(pa.array([0] * len(table), pa.int32()), [cell_id])
    return table.add_column(0, _ID, ids)


def write_table(path: Path, table: pd.DataFrame) -> Path:
    """Write a frame as a Parquet file, atomically. Returns its path."""
    write_parquet(path, pa.Table.from_pandas(table, preserve_index=False))
    return path


def distances_of(study_dir: Path) -> pd.DataFrame:
    """The table of ``study distances``; empty if there is none. StudyError if it is damaged."""
    path = study_dir / f"{DISTANCES}.parquet"
    if not path.exists():
        return pd.DataFrame()
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        table.validate(full=True)
        table.column("cell_id")
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise StudyError(
            f"{path} is damaged ({one_line(error)}): delete it and run "
            f"`study distances {study_dir}`"
        ) from None
    return table.to_pandas()
