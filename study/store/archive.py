"""An archived study: one Parquet file per table, which are read in place.

A few thousand small files are slow in git, and a third of them is Parquet's description of their
columns. ``cells.parquet`` is the ``cells`` table of the cells that have ended, for people, with the
JSON text of each record in the column ``record``, which is read. ``metrics.parquet``,
``probes.parquet`` and ``truncations.parquet`` have the rows of all cells, with the cell's id first.
pandas reads them. Adapters are not archived.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from study.errors import StudyError
from study.store.cells import cell_row, cells_table
from study.store.files import make_folder, remove, write_bytes
from study.store.records import ARCHIVE, cell_folders, no_study, read_cell
from study.store.rows import SCHEMAS, write_parquet
from study.store.tables import DISTANCES, load_cell_table, with_id
from study.vocabulary.statuses import ENDED

FILES = (ARCHIVE, *(f"{name}.parquet" for name in SCHEMAS))
LEVEL = 19
"""Of the compression. Reading takes the same time at every level."""
NOT_KEPT = ("tables", "adapter", "streams")
"""Keys of a record that describe files of the cell's folder."""

Thin = Callable[[str, pa.Table], pa.Table]
"""``thin(name, rows)`` is the part of a cell's table that the archive keeps."""


@dataclass(frozen=True)
class Archived:
    """What was written: the folder, its number of cells, and the ids of those left out."""

    folder: Path
    cells: int
    left_out: tuple[str, ...]

    @property
    def megabytes(self) -> float:
        """The size of its files together."""
        paths = (self.folder / name for name in FILES)
        return sum(path.stat().st_size for path in paths if path.exists()) / 1e6


def write_archive(
    study_dir: Path,
    to: Path,
    plots_dir: str = "plots",
    thin: Thin = lambda name, rows: rows,
) -> Archived:
    """Write the cells of ``study_dir`` that have ended to the folder ``to``.

    Values are those of the study, bit for bit. Each record names ``to`` and ``plots_dir`` as the
    study's folders. The table of ``study distances`` is copied. Raises :class:`StudyError` if no
    cell has ended, :class:`~study.store.files.Damaged` if a table is damaged, and
    :class:`~study.store.files.StorageError` if ``to`` can't be written.
    """
    records: dict[str, dict[str, Any]] = {}
    left_out = []
    for folder in cell_folders(study_dir):
        record = read_cell(folder)
        if record is None or record["status"] not in ENDED:
            left_out.append(folder.name)
        else:
            records[folder.name] = record
    if not records:
        raise (
            no_study(study_dir)
            if not left_out
            else StudyError(f"no cell of {study_dir} has ended: archive it when its sweep is done")
        )
    places = {"name": to.name, "results_dir": to.parent.as_posix(), "plots_dir": plots_dir}
    kept = {cell: _placed(record, places) for cell, record in records.items()}
    cells = cells_table([cell_row(record) for record in kept.values()])
    folders = [study_dir / "cells" / cell for cell in cells["cell_id"]]
    make_folder(to)
    for name in SCHEMAS:
        _write(to / f"{name}.parquet", _joined(name, folders, records, thin))
    texts = [json.dumps(kept[cell], sort_keys=True) for cell in cells["cell_id"]]
    _write(to / ARCHIVE, pa.Table.from_pandas(_of_one_type(cells).assign(record=texts)))
    distances = study_dir / f"{DISTANCES}.parquet"
    if distances.exists() and study_dir.resolve() != to.resolve():
        write_bytes(to / distances.name, distances.read_bytes())
    return Archived(to, len(records), tuple(left_out))


def _joined(
    name: str, folders: list[Path], records: Mapping[str, Mapping[str, Any]], thin: Thin
) -> pa.Table:
    """One table of all cells."""

    def parts() -> Iterator[pa.Table]:
        for folder in folders:
            rows = load_cell_table(folder, name, None, records[folder.name])
            yield with_id(folder.name, thin(name, rows))

    return pa.concat_tables(parts()).unify_dictionaries().combine_chunks()


def _placed(record: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """The record of an archived cell."""
    kept = {key: value for key, value in record.items() if key not in NOT_KEPT}
    return kept | {"study": places["name"], "config": {**record["config"], **places}}


def _of_one_type(cells: pd.DataFrame) -> pd.DataFrame:
    """``cells`` with text in the columns that hold numbers and text."""
    mixed = [str(name) for name in cells if cells[name].dtype == object]
    return cells.assign(**{name: cells[name].map(str, na_action="ignore") for name in mixed})


def _write(path: Path, table: pa.Table) -> None:
    """Write a table so that it is small; no file for one without rows.

    The bytes of numbers are sorted by significance, which compresses better.
    """
    if not len(table):
        remove(path)
        return
    numbers = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    write_parquet(
        path,
        table,
        compression_level=LEVEL,
        use_dictionary=[name for name in table.schema.names if name not in numbers],
        use_byte_stream_split=numbers,
        write_statistics=False,
        row_group_size=1 << 20,
        data_page_size=1 << 24,
    )
