"""A data file as rows: JSON lines, JSON, CSV or Parquet, by the ending of its name.

Every reader yields the place and the fields of one row at a time, and raises :class:`StudyError`
for what it can't read. Text files may be compressed.
"""

import csv
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from study.data.jsonl import LONGEST_LINE, Found, lines, read_lines, read_list
from study.errors import StudyError, one_line, short
from study.reading import check_memory, free_memory, open_file

_AT_ONCE = 256
"""Rows of Parquet in memory at once."""
_FIX = "name a .jsonl, .json, .csv or .parquet file"


def read_csv(file: BufferedReader, named: str) -> Iterator[Found]:
    """Yield the rows of a CSV file with a header. Every value is text, also ``NaN`` and ``1``."""
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(_text_lines(file, named), strict=True)
    where = f"{named}, the header"
    try:
        header = next(reader, [])
        if twice := next((name for name in header if header.count(name) > 1), None):
            raise StudyError(f"{where} has the column {short(twice)} twice: keep one of them")
        for row in filter(None, reader):  # blank lines are ignored
            where = f"{named}, line {reader.line_num}"
            if len(row) != len(header):
                raise StudyError(
                    f"{where} has {len(row)} fields, and the header has {len(header)}: put texts "
                    "with commas or line breaks in quotes"
                )
            yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise StudyError(
            f"{where} or the row after it is not valid CSV ({error}): write each quote inside a "
            f"text twice, and cut texts of over {LONGEST_LINE >> 20} MiB"
        ) from None


def _text_lines(file: BufferedReader, named: str) -> Iterator[str]:
    for number, line in lines(file, named):
        if b"\0" in line:
            raise StudyError(
                f"{named}, line {number} has a null byte: save the file as CSV in UTF-8"
            )
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError:
            raise StudyError(
                f"{named}, line {number} is not UTF-8: save the file as UTF-8"
            ) from None


def read_parquet(file: BufferedReader, named: str) -> Iterator[Found]:
    """Yield the rows of a Parquet file. Its largest group of rows must fit into memory."""
    number = 0
    try:
        table = pq.ParquetFile(file)
        groups = [table.metadata.row_group(n) for n in range(table.metadata.num_row_groups)]
        need = max((group.total_byte_size for group in groups), default=0)
        check_memory(need, free_memory(), named, "write it in smaller groups of rows")
        for batch in table.iter_batches(batch_size=_AT_ONCE):
            for row in batch.to_pylist():
                number += 1
                yield f"{named}, row {number}", row
    except UnicodeDecodeError:
        raise StudyError(f"{named}, after row {number}, is not UTF-8: write it again") from None
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        if isinstance(error, StudyError):
            raise
        raise StudyError(
            f"{named} can't be read as Parquet ({one_line(error)}): write it again"
        ) from None


Reader = Callable[[BufferedReader, str], Iterator[Found]]

READERS: dict[str, Reader] = {
    ".jsonl": read_lines,
    ".json": read_list,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
"""The reader of each ending. A file with another ending has an object per line."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


def is_file_name(path: str) -> bool:
    """Whether a path ends as a data file does."""
    return Path(path).suffix in (*READERS, *COMPRESSIONS)


def exists(path: str) -> bool:
    """Whether there is anything at ``path``."""
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError):  # too long a name; ~ of an unknown user
        return False


def read(path: str) -> Iterator[Found]:
    """Yield the rows of the file at ``path``, in order."""
    named = f"data.path={short(path, 200)}"
    suffixes = Path(path).suffixes
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression:
        del suffixes[-1]
    reader = READERS.get(suffixes[-1] if suffixes else "", read_lines)
    if compression and reader is read_parquet:
        raise StudyError(f"{named}: Parquet is compressed by itself: unpack the file first")
    with open_file(path, named, _FIX) as file:
        try:
            yield from reader(_unpacked(file, compression) if compression else file, named)
        except (OSError, EOFError) as error:
            cause = getattr(error, "strerror", None) or str(error)
            raise StudyError(f"{named} can't be read ({cause}): {_FIX}") from None


def _unpacked(file: BufferedReader, compression: str) -> BufferedReader:
    return BufferedReader(pa.CompressedInputStream(pa.PythonFile(file), compression))
