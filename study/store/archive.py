"""A whole study: ``study check`` compares its files with their hashes, and ``study archive`` writes
it as one Parquet file per table.

A few thousand small files are slow in git. ``cells.parquet`` is the ``cells`` table of the ended
cells, with each record as JSON in the column ``record``. The other tables have the rows of all
cells, with the cell's id first. They are read in place. Adapters are not archived.
"""

import json
import shlex
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from study.errors import StudyError
from study.store import checkpoints, files
from study.store.files import Damaged
from study.store.records import ARCHIVE, cell_folders, damage, is_archived, no_study, read_cell
from study.store.rows import SCHEMAS, write_parquet
from study.store.tables import DISTANCES, cells_table, distances_of, load_cell_table, with_id
from study.store.writer import ASIDE
from study.vocabulary.statuses import ENDED

FILES = (ARCHIVE, *(f"{name}.parquet" for name in SCHEMAS))
NOT_KEPT = ("tables", "adapter", "streams")
"""Keys of a record that describe files of the cell's folder."""

Thin = Callable[[str, pa.Table], pa.Table]
"""``thin(name, rows)`` is the part of a cell's table that the archive keeps."""


def write_archive(
    study_dir: Path,
    to: Path,
    plots_dir: str = "plots",
    thin: Thin = lambda name, rows: rows,
) -> list[str]:
    """Write the cells of ``study_dir`` that have ended to the folder ``to``.

    Returns the ids of the others. Values are those of the study, bit for bit. Each record names
    ``to`` and ``plots_dir`` as the study's folders. The table of ``study distances`` is copied.
    Raises :class:`StudyError` if no cell has ended, :class:`~study.store.files.Damaged` if a table
    is damaged, and :class:`~study.store.files.StorageError` if ``to`` can't be written.
    """
    places = {"name": to.name, "results_dir": to.parent.as_posix(), "plots_dir": plots_dir}
    records: dict[str, dict[str, Any]] = {}
    kept: dict[str, dict[str, Any]] = {}
    left_out = []
    for folder in cell_folders(study_dir):
        record = read_cell(folder)
        if record is None or record["status"] not in ENDED:
            left_out.append(folder.name)
            continue
        records[folder.name] = record
        kept[folder.name] = {key: value for key, value in record.items() if key not in NOT_KEPT}
        kept[folder.name] |= {"study": to.name, "config": {**record["config"], **places}}
    if not records:
        none = StudyError(f"no cell of {study_dir} has ended: archive it when its sweep is done")
        raise none if left_out else no_study(study_dir)
    cells = cells_table(list(kept.values()))
    files.make_folder(to)
    for name in SCHEMAS:
        parts = []
        for cell in cells["cell_id"]:
            rows = load_cell_table(study_dir / "cells" / cell, name, records[cell])
            parts.append(with_id(cell, thin(name, rows)))
        _write(to / f"{name}.parquet", pa.concat_tables(parts))
    texts = [json.dumps(kept[cell], sort_keys=True) for cell in cells["cell_id"]]
    for column in cells:  # Parquet has one type for a column: numbers and text are text
        if cells[column].dtype == object:
            cells[column] = cells[column].map(str, na_action="ignore")
    _write(to / ARCHIVE, pa.Table.from_pandas(cells.assign(record=texts)))
    distances = study_dir / f"{DISTANCES}.parquet"
    if distances.exists() and study_dir.resolve() != to.resolve():
        files.write_bytes(to / distances.name, distances.read_bytes())
    return left_out


def _write(path: Path, table: pa.Table) -> None:
    """Write a table so that it is small; no file for one without rows.

    The bytes of numbers are sorted by significance, which compresses better.
    """
    if not len(table):
        files.remove(path)
        return
    numbers = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    write_parquet(
        path,
        table.unify_dictionaries().combine_chunks(),
        compression_level=19,  # reading takes the same time at every level
        use_dictionary=[name for name in table.schema.names if name not in numbers],
        use_byte_stream_split=numbers,
        write_statistics=False,
        row_group_size=1 << 20,
        data_page_size=1 << 24,
    )


class Problem(NamedTuple):
    """A damaged file or folder of a cell, the reason, and the shell command after which
    ``study train`` or ``study distances`` makes it again.
    """

    path: Path
    reason: str
    repair: str


def check_study(study_dir: Path) -> Iterator[Problem]:
    """The problems of a study: records, tables, adapters, checkpoints, distances and archive.

    It reads every file and writes nothing. Files that a live process may be writing are left out.
    Raises :class:`~study.errors.StudyError` if the folder holds no study, or a damaged archive.
    """
    folders = cell_folders(study_dir)
    if not folders:
        raise no_study(study_dir)
    aside = study_dir / ASIDE
    for folder in folders:
        record = read_cell(folder)
        if record is None:
            continue
        if reason := _damage(folder, record):
            target = aside / f"{folder.name}.{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}"
            move = shlex.join(["mv", "--", str(folder), str(target)])
            repair = f"{shlex.join(['mkdir', '-p', '--', str(aside)])} && {move}"
            again = f"# get {study_dir} again"
            yield Problem(folder, reason, again if is_archived(folder) else repair)
        elif record["status"] not in ENDED and not files.is_claimed(folder):
            for path, why in checkpoints.unusable(folder, folder.name):
                yield Problem(path, why, shlex.join(["rm", "--", str(path)]))
    try:
        distances_of(study_dir)
    except StudyError as error:
        path = study_dir / f"{DISTANCES}.parquet"
        yield Problem(path, str(error), shlex.join(["rm", "--", str(path)]))


def _damage(folder: Path, record: dict[str, Any]) -> str | None:
    """Why the cell must be trained again from the start; None if it need not."""
    if record["status"] == "unreadable":
        return str(record["error"])
    if record["status"] not in ENDED:
        return None
    try:
        for name in SCHEMAS:
            load_cell_table(folder, name, record)
    except Damaged as error:
        return str(error)
    return damage(folder, record, of_adapter=True)
