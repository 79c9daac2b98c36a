"""The rows of a data file, or of a data set of the Hugging Face hub.

The ending of a file's name gives its format: JSON lines, JSON, CSV or Parquet. Text files may be
compressed. Every reader yields the place of a row, for messages, and its fields, one row at a time.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from io import BufferedReader, TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from study.config import DataConfig
from study.errors import StudyError, one_line, short
from study.vocabulary.extras import install

Found = tuple[str, dict[str, Any]]
"""Where a row is, for messages, and its fields."""

_AT_ONCE = 256
"""Rows of Parquet in memory at once."""
_FIX = "name a .jsonl, .json, .csv or .parquet file"
_WRITE = 'write one object per line, such as {"context": "...", "target": "..."}'
_BOM = b"\xef\xbb\xbf"


def read_lines(file: BufferedReader, named: str) -> Iterator[Found]:
    # Lines end at \n only: a JSON string may contain U+2028 or a lone carriage return.
    for number, line in enumerate(file, start=1):
        content = line.removeprefix(_BOM) if number == 1 else line
        if content.strip():
            where = f"{named}, line {number}"
            yield where, _parsed(content, where)


def read_list(file: BufferedReader, named: str) -> Iterator[Found]:
    """Yield the rows of a file with a list of objects or, as many of the hub, one per line."""
    if not file.peek(64).removeprefix(_BOM).lstrip().startswith(b"["):
        yield from read_lines(file, named)
        return
    for number, row in enumerate(_parsed(file.read().removeprefix(_BOM), named), start=1):
        yield f"{named}, row {number}", row


def _parsed(content: bytes, where: str) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        why = f"{where} is not valid JSON in UTF-8 ({one_line(error)})"
        raise StudyError(f"{why}: {_WRITE}") from None


def _check_text(row: dict[str, Any], where: str) -> None:
    """JSON can hold half of a surrogate pair, which is no text and no tokenizer accepts."""
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise StudyError(f"{where} has half of a surrogate pair ({error}): remove it") from None


def read_csv(file: BufferedReader, named: str) -> Iterator[Found]:
    """Yield the rows of a CSV file with a header. Every value is text, also ``NaN`` and ``1``."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                where = f"{named}, line {reader.line_num}"
                raise StudyError(f"{where} has more or fewer fields than the header: use quotes")
            yield f"{named}, line {reader.line_num}", row
    except (csv.Error, UnicodeDecodeError) as error:
        where = f"{named}, after line {reader.line_num}"
        fix = "write quotes in texts twice" if isinstance(error, csv.Error) else "save it in UTF-8"
        raise StudyError(f"{where}: no valid CSV in UTF-8 ({error}): {fix}") from None


def read_parquet(file: BufferedReader, named: str) -> Iterator[Found]:
    batches = pq.ParquetFile(file).iter_batches(batch_size=_AT_ONCE)
    rows = chain.from_iterable(batch.to_pylist() for batch in batches)
    for number, row in enumerate(rows, start=1):
        yield f"{named}, row {number}", row


READERS: dict[str, Callable[[BufferedReader, str], Iterator[Found]]] = {
    ".jsonl": read_lines,
    ".json": read_list,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
"""The reader of each ending. A file with another ending has an object per line."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


def is_file_name(path: str) -> bool:
    return Path(path).suffix in (*READERS, *COMPRESSIONS)


def read(path: str) -> Iterator[Found]:
    named = f"data.path={short(path, 200)}"
    suffixes = Path(path).suffixes
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression:
        del suffixes[-1]
    reader = READERS.get(suffixes[-1] if suffixes else "", read_lines)
    try:
        with Path(path).expanduser().open("rb") as opened:
            file = opened
            if compression:
                file = BufferedReader(pa.CompressedInputStream(pa.PythonFile(opened), compression))
            for where, row in reader(file, named):
                if not isinstance(row, dict):
                    raise StudyError(f"{where} is of type {type(row).__name__}: {_WRITE}")
                _check_text(row, where)
                yield where, row
    except FileNotFoundError:
        raise StudyError(f"{named} does not exist: {_FIX}") from None
    except (OSError, EOFError, ValueError, RuntimeError, pa.ArrowException) as error:
        if isinstance(error, StudyError):
            raise
        raise StudyError(f"{named} can't be read ({one_line(error)}): {_FIX}") from None


def is_hub_name(path: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", path) is not None


def read_hub(config: DataConfig) -> Iterator[Found]:
    """Yield the rows of a data set of the hub, which ``datasets`` downloads once."""
    named = f"data.path={short(config.path, 200)}"
    try:
        datasets = import_module("datasets")
    except ModuleNotFoundError:
        how = f"the hub needs datasets: {install('data')}"
        raise StudyError(f"{named} is no file here; {how}") from None
    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(config.path, config.subset, split=config.split)
        for number, row in enumerate(found, start=1):
            yield f"{named}, row {number}", row
    except Exception as error:  # of many kinds: the network, the name, the split, the files
        raise StudyError(
            f"{named} is no file here, and datasets can't load it ({one_line(error)}): check the "
            f"network, the name, data.split={config.split} and data.subset={config.subset}"
        ) from None
