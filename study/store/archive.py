"""A whole study: ``study check`` compares its files with their hashes, and ``study archive`` writes
it as one Parquet file per table.

A few thousand small files are slow in git. ``cells.parquet`` is the ``cells`` table of the ended
cells, with each record as JSON in the column ``record``, and the hashes of all tables in its
metadata. The other tables have the rows of all cells, with the cell's id first. They are read in
place. Adapters are not archived.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from study.errors import StudyError
from study.store import checkpoints, files
from study.store.records import (
    ABOUT,
    ARCHIVE,
    BLANK,
    PLACES,
    SHA256,
    cell_folders,
    damage,
    new_file,
    no_study,
    read_cell,
    without_folders,
)
from study.store.rows import SCHEMAS, parquet_bytes
from study.store.tables import DISTANCES, cells_table, distances_of, load_cell_table, with_id
from study.vocabulary.statuses import ENDED

FILES = (ARCHIVE, *(f"{name}.parquet" for name in SCHEMAS))
"""The files of an archive."""
NOT_KEPT = (*PLACES, "streams", SHA256)
"""The keys of a record on the files of its cell. A record in an archive has none of them."""

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
    ``to`` and ``plots_dir`` as the study's folders. An archive in ``to`` is replaced when
    ``cells.parquet`` is: before, the new tables have other names, which readers know afterwards.
    A second process that writes to ``to`` waits for the first one.
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
        own = {"study": to.name, "config": {**record["config"], **places}}
        kept[folder.name] = without_folders(kept[folder.name] | own)
    if not records:
        none = StudyError(f"no cell of {study_dir} has ended: archive it when its sweep is done")
        raise none if left_out else no_study(study_dir)
    files.make_folder(to)
    with files.Lock(to / f"archive{files.DRAFT}") as lock:
        _write_tables(study_dir, to, records, kept, thin)
        files.remove(lock.path)
    return left_out


def _write_tables(
    study_dir: Path,
    to: Path,
    records: Mapping[str, Mapping[str, Any]],
    kept: Mapping[str, Mapping[str, Any]],
    thin: Thin,
) -> None:
    """Write the tables of the cells. ``records``: those of the study; ``kept``: of the archive."""
    cells = cells_table(list(kept.values()))

    def joined(name: str) -> pa.Table:
        parts = []
        for cell in cells["cell_id"]:
            rows = load_cell_table(study_dir / "cells" / cell, name, records[cell])
            parts.append(with_id(cell, thin(name, rows)))
        return pa.concat_tables(parts)

    about: dict[str, dict[str, Any]] = {}
    for name in (*SCHEMAS, DISTANCES):
        rows = joined(name) if name in SCHEMAS else pa.Table.from_pandas(distances_of(study_dir))
        if len(rows):
            content = _packed(rows)
            about[name] = files.described(content) | {"rows": len(rows)}
            files.write_bytes(new_file(to, name, about[name]), content)
    texts = [json.dumps(kept[cell], sort_keys=True) for cell in cells["cell_id"]]
    for column in cells:  # Parquet has one type for a column: numbers and text are text
        if cells[column].dtype == object:
            cells[column] = cells[column].map(str, na_action="ignore")
    table = pa.Table.from_pandas(cells.assign(record=texts))
    files.write_bytes(to / ARCHIVE, with_hashes(table, about))
    for name in (*SCHEMAS, DISTANCES):
        if name in about:
            files.rename(new_file(to, name, about[name]), to / f"{name}.parquet")
        else:
            files.remove(to / f"{name}.parquet")
        files.remove(*to.glob(f"{name}.*.parquet"))  # of a killed command


def with_hashes(cells: pa.Table, about: Mapping[str, Any]) -> bytes:
    """The file ``cells.parquet``, with ``about`` the other tables in its metadata."""
    said = json.dumps({"cells": {"rows": len(cells), SHA256: BLANK}, **about})
    metadata = {**(cells.schema.metadata or {}), ABOUT: said}
    content = bytes(_packed(cells.replace_schema_metadata(metadata)))
    own = files.described(content)[SHA256]
    return content.replace(BLANK.encode(), own.encode())


def _packed(table: pa.Table) -> memoryview:
    """The file of a table, made small: numbers are sorted by the significance of their bytes."""
    numbers = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    return parquet_bytes(
        table.unify_dictionaries().combine_chunks(),
        compression_level=19,  # reading takes the same time at every level
        use_dictionary=[name for name in table.schema.names if name not in numbers],
        use_byte_stream_split=numbers,
        write_statistics=False,
        row_group_size=1 << 20,
        data_page_size=1 << 24,
    )


def check_study(study_dir: Path) -> Iterator[tuple[Path, str]]:
    """The damaged files of a study, or folders of its cells, each with the reason. Files that a
    live process may be writing are left out."""
    folders = cell_folders(study_dir)
    if not folders:
        raise no_study(study_dir)
    for folder in folders:
        record = read_cell(folder)
        if record is None:
            continue
        if record["status"] == "unreadable":
            yield folder, str(record["error"])
        elif record["status"] in ENDED:
            if reason := damage(folder, record, *PLACES):
                yield folder, reason
        elif not files.is_claimed(folder):
            tried = checkpoints.tried(folder)
            yield from ((note, found) for note, found in tried if isinstance(found, str))
    try:
        distances_of(study_dir)
    except StudyError as error:
        yield study_dir / f"{DISTANCES}.parquet", str(error)
