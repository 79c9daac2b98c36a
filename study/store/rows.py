"""The rows of a cell: their columns, the Arrow stream during training, and the Parquet file of each
table afterwards.
"""

import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from study.errors import one_line
from study.store import files
from study.store.files import Damaged
from study.vocabulary.quantities import METRICS, STATS

TEXT = pa.dictionary(pa.int32(), pa.string())
"""The type of a column whose strings repeat."""

_METRICS = pa.schema(
    [("step", pa.int32()), ("tokens", pa.int64())] + [(name, pa.float64()) for name in METRICS]
)
_PROBES = pa.schema(
    [("step", pa.int32()), ("layer", TEXT), ("block", pa.int32())]
    + [(name, TEXT) for name in ("kind", "site", "batch")]
    + [("d_in", pa.int32()), ("d_out", pa.int32())]
)
_TRUNCATIONS = pa.schema([(name, pa.float64()) for name in ("kept", "loss", "share")])
_EXAMPLES = pa.schema([("loss", pa.float32()), ("tokens", pa.int32())])


class _Schemas(dict[str, pa.Schema]):
    """The probes' schema has a column for each statistic, including those of plug-ins."""

    def __getitem__(self, name: str) -> pa.Schema:
        stats = STATS if name == "probes" else ()
        return pa.schema([*super().__getitem__(name), *((stat, pa.float32()) for stat in stats)])


SCHEMAS = _Schemas(metrics=_METRICS, probes=_PROBES, truncations=_TRUNCATIONS, examples=_EXAMPLES)
"""The tables that a cell writes; one without rows has no file.

In ``truncations``, ``loss`` is the held-out loss after the last step with every delta_w cut to
``kept`` singular directions, and ``share`` their share of its squared norm, mean over layers. In
``examples``, a row per held-out example in their order, ``loss`` is the sum in nats over its
supervised ``tokens`` after the last step."""


# While the cell trains.


class Stream:
    """Appends to the Arrow stream of one table; every append is one write. ``written``: its
    bytes."""

    def __init__(self, path: Path, rows: pa.Table) -> None:
        self.path, self.written, self._rows = path, 0, 0
        self._encoded = io.BytesIO()
        self._writer = pa.ipc.new_stream(self._encoded, rows.schema)
        files.write_bytes(path, self._encode(rows))
        self._file = files.create(path)

    def append(self, rows: pa.Table) -> None:
        files.append(self._file, self._encode(rows), self.path)

    def _encode(self, rows: pa.Table) -> bytes:
        for batch in rows.combine_chunks().to_batches():
            self._writer.write_batch(batch)
        content = self._encoded.getvalue()
        self._encoded.seek(0)
        self._encoded.truncate()
        self.written += len(content)
        self._rows += len(rows)
        return content

    def sync(self) -> None:
        files.sync(self.path)

    def read(self) -> pa.Table:
        table = read_stream(self.path, self.written)
        if len(table) != self._rows:
            raise Damaged(f"{self.path.name} is damaged: {len(table)} of {self._rows} rows")
        return table

    def close(self) -> None:
        with contextlib.suppress(OSError):  # its rows are on disk already, or were reported
            os.close(self._file)


def read_stream(path: Path, synced: int | None = None) -> pa.Table:
    """The whole batches of a stream. ``synced``: the bytes on disk when the record was written.
    Later ones may be wrong after a power cut and are not read."""
    content = b""
    with contextlib.suppress(Damaged):
        content = files.read(path)
    if synced is not None and len(content) < synced:
        raise Damaged(f"{path.name} has {len(content)} bytes instead of {synced}")
    batches = []
    with contextlib.suppress(pa.ArrowInvalid, OSError):
        batches.extend(pa.ipc.open_stream(content[:synced]))
    schema = SCHEMAS[path.stem]
    table = pa.Table.from_batches(batches) if batches else schema.empty_table()
    return _with_columns(table, schema).unify_dictionaries()


def _with_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema; null where a file of an older version lacks them."""
    both = pa.concat_tables([schema.empty_table(), table], promote_options="default")
    return both.select(schema.names)


# When it has ended.


def write_parquet(path: Path, table: pa.Table) -> dict[str, Any]:
    """Write a table atomically, and return the ``bytes`` and the ``sha256`` of its file."""
    return files.write_bytes(path, parquet_bytes(table))


def parquet_bytes(table: pa.Table, **options: Any) -> memoryview:
    """The Parquet file of a table. ``options``: of :func:`pyarrow.parquet.write_table`."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **{"compression": "zstd", "write_page_checksum": True} | options)
    return memoryview(sink.getvalue())


def read_parquet(
    path: Path, schema: pa.Schema | None = None, expected: Mapping[str, Any] | None = None
) -> pa.Table:
    """A table, with the columns of ``schema`` if given (missing ones are null). ``expected``: the
    ``bytes`` and ``sha256`` of the file."""
    content = files.read(path, expected)
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        table = file.read(use_threads=False)  # they take as long as reading a thousand rows
        table.validate(full=expected is None)  # for example, indices outside their dictionary
        return table if schema is None else _with_columns(table, schema)
    except (OSError, ValueError, TypeError, KeyError, IndexError, pa.ArrowException) as error:
        raise Damaged(f"{path.name} is damaged: {one_line(error)}") from None
