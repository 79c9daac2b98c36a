"""The rows of a cell: their columns, the Arrow stream that grows while the cell trains, and the
Parquet file that each table becomes when it has ended.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from io import RawIOBase
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from study.errors import StudyError, one_line
from study.store.files import (
    Damaged,
    create,
    cut,
    described,
    read_whole,
    replacing,
    sync_file,
    verified,
    write,
    write_bytes,
)
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
    + [(stat, pa.float32()) for stat in STATS]
)
_TRUNCATIONS = pa.schema([(name, pa.float64()) for name in ("kept", "loss", "share")])

SCHEMAS = {"metrics": _METRICS, "probes": _PROBES, "truncations": _TRUNCATIONS}
"""The tables that a cell writes; one without rows has no file.

- ``metrics``: a row per step (:data:`study.vocabulary.quantities.METRICS`);
- ``probes``: a row per step, layer, site and batch, with a column per statistic
  (:data:`~study.vocabulary.quantities.STATS`);
- ``truncations``: a row per lower rank. ``loss`` is the held-out loss after the last step with
  every delta_w cut to ``kept`` singular directions. ``share`` is their share of the squared norm
  of delta_w, mean over layers.
"""


# While the cell trains.


class Stream:
    """Appends to the Arrow stream of one table; every append is one write.

    The first rows replace the file that was there. A write that fails is undone, and the stream
    takes no more rows. ``written``: the bytes so far.
    """

    def __init__(self, path: Path, rows: pa.Table) -> None:
        """Raises :class:`~study.store.files.StorageError` if the file can't be written."""
        self.path, self.written, self._rows = path, 0, 0
        self._encoded = _Encoded()
        self._writer = pa.ipc.new_stream(self._encoded, rows.schema)
        with contextlib.ExitStack() as on_error:
            with replacing(path) as draft:
                self._file = create(draft)
                on_error.callback(self.close)
                self.append(rows)
            on_error.pop_all()

    def append(self, rows: pa.Table) -> None:
        """Any process can read the rows when it returns. They may not be on disk."""
        for batch in rows.combine_chunks().to_batches():
            self._writer.write_batch(batch)
        content = self._encoded.take()
        try:
            write(self._file, content, self.path)
        except StudyError:
            with contextlib.suppress(StudyError):  # readers stop before a part of a batch
                cut(self._file, self.written, self.path)
            raise
        self.written += len(content)
        self._rows += len(rows)

    def sync(self) -> None:
        """Wait until all rows are on disk."""
        sync_file(self._file, self.path)

    def read(self) -> pa.Table:
        """All rows, from the disk. Raises :class:`Damaged` if some are missing."""
        content = read_whole(self.path)
        if len(content) != self.written:
            raise Damaged(f"{self.path.name} has {len(content)} bytes instead of {self.written}")
        table = _decoded_stream(content, SCHEMAS[self.path.stem], None)
        if len(table) != self._rows:
            raise Damaged(f"{self.path.name} is damaged: {len(table)} of {self._rows} rows")
        return table

    def close(self) -> None:
        """Close the file and keep it."""
        with contextlib.suppress(OSError):  # its rows are on disk already, or were reported
            os.close(self._file)


class _Encoded(RawIOBase):
    """Collects what an Arrow writer writes, which is a hundred small pieces a batch."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, part: Any) -> int:
        self._parts.append(bytes(part))
        return len(self._parts[-1])

    def take(self) -> bytes:
        """What was written since the last call."""
        content = b"".join(self._parts)
        self._parts.clear()
        return content


def read_stream(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The whole batches of a stream. A killed process may have left a part of one at the end."""
    content = b""
    with contextlib.suppress(Damaged):
        content = read_whole(path)
    return _decoded_stream(content, SCHEMAS[path.stem], columns)


def read_synced(path: Path, record: Mapping[str, Any]) -> pa.Table:
    """The rows that a stream had on disk when ``record`` was written.

    They include those before every checkpoint. What follows them may be anything after a power cut:
    a batch of zeros reads as a row of step 0. Raises :class:`Damaged` if they are not all there.
    """
    size = record.get("streams", {}).get(path.stem)
    if not isinstance(size, int):
        return read_stream(path)
    content = read_whole(path)
    if len(content) < size:
        raise Damaged(f"{path.name} has {len(content)} bytes instead of {size}")
    return _decoded_stream(content[:size], SCHEMAS[path.stem], None)


def _decoded_stream(content: bytes, schema: pa.Schema, columns: Sequence[str] | None) -> pa.Table:
    wanted = [field for field in schema if columns is None or field.name in columns]
    options = pa.ipc.IpcReadOptions(
        included_fields=[schema.get_field_index(field.name) for field in wanted]
    )
    batches = []
    with (
        contextlib.suppress(pa.ArrowInvalid, OSError),
        pa.ipc.open_stream(pa.BufferReader(content), options=options) as stream,
    ):
        for batch in stream:
            batches.append(batch)
    table = pa.Table.from_batches(batches, schema=pa.schema(wanted)).unify_dictionaries()
    return table if columns is None else table.select(list(columns))


def last_metrics(stream: Path) -> dict[str, Any] | None:
    """The last whole row of a ``metrics`` stream; None if it has none."""
    rows = read_stream(stream)
    return rows.slice(len(rows) - 1).to_pylist()[0] if len(rows) else None


# When it has ended.


def write_parquet(path: Path, table: pa.Table, **options: Any) -> dict[str, Any]:
    """Write a table atomically, and return the ``bytes`` and the ``sha256`` of its file.

    ``options``: of :func:`pyarrow.parquet.write_table`.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **{"compression": "zstd", "write_page_checksum": True} | options)
    write_bytes(path, memoryview(sink.getvalue()))
    return described(path)


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
