"""A study as tidy tables: those of its cells, and those computed from them."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow as pa

from study.store.cells import load_cells
from study.store.files import replacing
from study.store.schemas import DERIVED, SCHEMAS, TEXT
from study.store.streams import load_cell_table


@dataclass(frozen=True)
class StudyTables:
    """A study as pandas frames. Missing is NaN; strings that repeat are categorical.

    - ``cells``: a row per cell, with its configuration and how it ended;
    - ``metrics``: a row per cell and step;
    - ``probes``: a row per cell, step, layer, site and batch, with a column per statistic;
    - ``truncations``: a row per cell and lower rank, if ``probes.truncations`` is set;
    - ``exponents``, ``stable``, ``rates``, ``losses``, ``distances``: written by ``study analyze``
      and ``study distances``; empty before.
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


def load_tables(study_dir: str | os.PathLike[str]) -> StudyTables:
    """All tables of a study. Running and diverged cells are included as far as they got.

    Raises :class:`StudyError` if the folder holds no study.
    """
    folder = Path(study_dir)
    cells = load_cells(folder)
    frames = {name: _of_cells(folder, cells["cell_id"].tolist(), name) for name in SCHEMAS}
    for name in DERIVED:
        path = folder / f"{name}.parquet"
        frames[name] = pd.read_parquet(path) if path.exists() else pd.DataFrame()
    return StudyTables(cells, **frames)


def write_derived(study_dir: str | os.PathLike[str], name: str, table: pd.DataFrame) -> Path:
    """Replace one of the study's :data:`~study.store.schemas.DERIVED` tables. Returns its file."""
    path = Path(study_dir) / f"{name}.parquet"
    with replacing(path) as draft:
        table.to_parquet(draft, index=False)
    return path


def _of_cells(folder: Path, cell_ids: list[str], name: str) -> pd.DataFrame:
    """One table of all cells, with their ids as the first column."""
    empty = SCHEMAS[name].empty_table().add_column(0, "cell_id", pa.array([], TEXT))
    tables = [_with_id(i, load_cell_table(folder / "cells" / i, name)) for i in cell_ids]
    return pa.concat_tables([empty, *tables]).unify_dictionaries().to_pandas()


def _with_id(cell_id: str, table: pa.Table) -> pa.Table:
    ids = pa.DictionaryArray.from_arrays(pa.array([0] * len(table), pa.int32()), [cell_id])
    return table.add_column(0, "cell_id", ids)
