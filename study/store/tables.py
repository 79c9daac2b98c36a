"""A study as tidy tables."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from study.errors import StudyError, one_line
from study.store.cell_tables import load_cell_table
from study.store.cells import cell_row, cells_of, warn_of_damage
from study.store.files import replacing
from study.store.records import cell_folders, read_cell
from study.store.schemas import DISTANCES, SCHEMAS, TEXT
from study.store.streams import Damaged


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
    if the folder holds no study, or if the table of distances is damaged.
    """
    folder = Path(study_dir)
    read = {found.row["cell_id"]: found for found in map(_read, cell_folders(folder)) if found}
    cells = cells_of(folder, [found.row for found in read.values()])
    damaged = {cell: read[cell].damage for cell in cells["cell_id"] if read[cell].damage}
    warn_of_damage(folder, damaged)
    cells = cells[~cells["cell_id"].isin(list(damaged))].reset_index(drop=True)
    tables = {cell: read[cell].tables for cell in cells["cell_id"]}
    del read
    frames = {name: _joined(name, tables) for name in SCHEMAS}
    return StudyTables(cells, **frames, distances=_distances(folder, cells))


def write_table(path: Path, table: pd.DataFrame) -> Path:
    """Write a frame as a Parquet file, atomically. Returns its path."""
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    with replacing(path) as draft:
        pq.write_table(arrow, draft, write_page_checksum=True)
    return path


def _distances(folder: Path, cells: pd.DataFrame) -> pd.DataFrame:
    """The distances of the cells that there are, and of rank-free runs, which have no cell."""
    path = folder / f"{DISTANCES}.parquet"
    if not path.exists():
        return pd.DataFrame()
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        table.validate(full=True)
        distances = table.to_pandas()
        ids = distances["cell_id"].astype(str)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise StudyError(
            f"{path} is damaged ({one_line(error)}): delete it and run `study distances {folder}`"
        ) from None
    known = ids.isin(set(cells["cell_id"].astype(str))) | ids.str.startswith("free ")
    return distances[known].reset_index(drop=True)


@dataclass(frozen=True)
class _Cell:
    """A cell, read once: its row of ``cells`` and its tables by name.

    ``damage``: why its tables can't be used; empty if they can.
    """

    row: dict[str, Any]
    tables: dict[str, pa.Table]
    damage: str = ""


def _read(folder: Path) -> _Cell | None:
    """The cell in ``folder``; None if it has no record."""
    record = read_cell(folder)
    if record is None:
        return None
    try:
        tables = {name: load_cell_table(folder, name, None, record) for name in SCHEMAS}
    except Damaged as error:
        return _Cell(cell_row(record), {}, str(error))
    return _Cell(cell_row(record), tables)


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
