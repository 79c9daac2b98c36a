"""The tables of one cell: Arrow streams while it trains, Parquet files when it has ended.

The record decides which of the two counts: the Parquet files of a cell that has ended, the streams
of any other. It holds the size and the hash of each, so that damage is found when they are read.
"""

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from io import RawIOBase
from pathlib import Path
from typing import Any

import pyarrow as pa

from study.errors import StudyError
from study.store.files import create, cut, replacing, sync_file, write
from study.store.schemas import SCHEMAS


class Damaged(StudyError):
    """A file of results is missing or holds other bytes than were written."""


class Stream:
    """Appends to the Arrow stream of one table; every append is one write.

    The first rows replace the file that was there. A write that fails is undone, and the stream
    takes no more rows.
    """

    def __init__(self, path: Path, rows: pa.Table) -> None:
        """Raises :class:`~study.store.files.StorageError` if the file can't be written."""
        self.path, self._size, self._sha256 = path, 0, hashlib.sha256()
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
                cut(self._file, self._size, self.path)
            raise
        self._sha256.update(content)
        self._size += len(content)

    @property
    def written(self) -> dict[str, Any]:
        """The ``bytes`` and the ``sha256`` of all that was written."""
        return {"bytes": self._size, "sha256": self._sha256.hexdigest()}

    def sync(self) -> None:
        """Wait until all rows are on disk."""
        sync_file(self._file, self.path)

    def read(self, schema: pa.Schema) -> pa.Table:
        """All rows, from the disk. Raises :class:`Damaged` if they are not what was written."""
        return _decoded(verified(self.path, self.written), schema, None)

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


def verified(path: Path, expected: Mapping[str, Any], prefix: bool = False) -> bytes:
    """The content of a file. Raises :class:`Damaged` if its size or its hash is not ``expected``.

    ``prefix``: the file may go on after the ``bytes`` that are hashed.
    """
    content = read_whole(path)
    size = expected["bytes"]
    if len(content) < size or (len(content) > size and not prefix):
        raise Damaged(f"{path.name} has {len(content)} bytes instead of {size}")
    hashed = memoryview(content)[:size]
    if hashlib.sha256(hashed).hexdigest() != expected["sha256"]:
        raise Damaged(f"{path.name} is damaged: its hash is not the one in record.json")
    return content


def read_whole(path: Path) -> bytes:
    """The content of a file. Raises :class:`Damaged` if it is missing, or a pipe or a device."""
    try:
        if not path.exists():
            raise Damaged(f"{path.name} is missing")
        if not path.is_file():
            raise Damaged(f"{path.name} is not a file")
        return path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path.name} can't be read: {error.strerror}") from None


def described(path: Path) -> dict[str, Any]:
    """The ``bytes`` and the ``sha256`` of a file, as :func:`verified` expects them."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def read_stream(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """The whole batches of a stream. A killed process may have left a part of one at the end."""
    content = b""
    with contextlib.suppress(Damaged):
        content = read_whole(path)
    return _decoded(content, schema, columns)


def read_synced(path: Path, schema: pa.Schema, record: Mapping[str, Any]) -> pa.Table:
    """The rows that an interrupted cell's stream had on disk when ``record`` was written.

    They include those before every checkpoint. What follows them may be anything after a power
    cut, such as zeros. Raises :class:`Damaged` if they have changed.
    """
    synced = record.get("streams", {}).get(path.stem)
    if synced is None:
        return read_stream(path, schema)
    return _decoded(verified(path, synced, prefix=True)[: synced["bytes"]], schema, None)


def _decoded(content: bytes, schema: pa.Schema, columns: Sequence[str] | None) -> pa.Table:
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
    """The last whole row of a ``metrics`` stream; None if it has none.

    Only the last batch is decoded. Reading 10 000 rows takes about 20 ms.
    """
    last = None
    if not stream.is_file():
        return None
    with (
        contextlib.suppress(pa.ArrowInvalid, EOFError, OSError),
        pa.OSFile(str(stream)) as source,
    ):
        for message in pa.ipc.MessageReader.open_stream(source):
            if message.type == "record batch":
                last = message
    with contextlib.suppress(pa.ArrowInvalid, OSError, IndexError):  # zeros of a power cut
        if last is not None:
            batch = pa.ipc.read_record_batch(last, SCHEMAS["metrics"])
            return batch.slice(len(batch) - 1).to_pylist()[0]
    return None
