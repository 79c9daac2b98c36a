"""The tables of one cell as they are read: streams while it trains, Parquet when it has ended."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from study.errors import one_line
from study.store.files import write_bytes
from study.store.records import read_record
from study.store.schemas import SCHEMAS
from study.store.streams import Damaged, read_stream, read_whole, verified
from study.vocabulary.statuses import ENDED


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
    stream, finished = cell_folder / f"{name}.arrows", cell_folder / f"{name}.parquet"
    if record is None or (record["status"] not in ENDED and not stream.exists()):
        record = read_record(cell_folder) or {"status": "running"}  # it may have ended just now
    if record["status"] == "unreadable":
        raise Damaged(record["error"])
    expected = record.get("tables", {}).get(name)
    if record["status"] in ENDED and (expected or finished.exists()):
        return read_parquet(finished, SCHEMAS[name], columns, expected)
    return read_stream(stream, SCHEMAS[name], columns)


def rows_of(cell_folder: Path, table: str) -> pd.DataFrame:
    """:func:`load_cell_table` as a frame."""
    return load_cell_table(cell_folder, table).to_pandas()


def write_parquet(path: Path, table: pa.Table) -> dict[str, Any]:
    """Write a table atomically, and return the ``bytes`` and the ``sha256`` of its file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    content = sink.getvalue().to_pybytes()
    write_bytes(path, content)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def read_parquet(
    path: Path,
    schema: pa.Schema,
    columns: Sequence[str] | None = None,
    expected: Mapping[str, Any] | None = None,
) -> pa.Table:
    """A table with the columns of ``schema``; those that the file lacks are null.

    ``expected``: the ``bytes`` and the ``sha256`` of the file. Without them, only the checksums of
    its pages are compared. Raises :class:`Damaged` if the file is not what was written.
    """
    try:
        content = read_whole(path) if expected is None else verified(path, expected)
        table = _decoded(content, schema, None if columns is None else list(columns))
        if expected is None:
            table.validate(full=True)  # for example, indices outside their dictionary
        return table
    except Damaged:
        raise
    except (OSError, ValueError, TypeError, KeyError, IndexError, pa.ArrowException) as error:
        raise Damaged(f"{path.name} is damaged: {one_line(error)}") from None


def _decoded(content: bytes, schema: pa.Schema, columns: list[str] | None) -> pa.Table:
    file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    if file.schema_arrow.equals(schema):
        whole = file.read(columns, use_threads=False).replace_schema_metadata(None)
        return whole if columns is None else whole.select(columns)
    # This way also fills columns that are missing and converts types. It starts threads for every
    # file, which takes as long as reading a thousand rows.
    return pq.read_table(
        pa.BufferReader(content), schema=schema, columns=columns, page_checksum_verification=True
    )
