"""Rows from JSON: an object per line, or one list of objects."""

import json
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

from study.errors import StudyError
from study.reading import free_memory
from study.vocabulary.sources import FORMATS

Found = tuple[str, dict[str, Any]]
"""Where a row is, for messages, and its fields."""

LONGEST_LINE = 4 << 20
"""Bytes. About a million tokens, and parsing takes at most ``_PARSED`` times as much memory."""
_PARSED = 25
MOST_LINES = 10_000_000
LARGEST_LIST = 1 << 30
"""Bytes of a file with one list."""

_BOM = b"\xef\xbb\xbf"
_WRITE = 'write one object per line, such as {"context": "...", "target": "..."}'
_READ = sorted(
    {key for row in FORMATS.values() for fields in (*row.needs, row.takes) for key in fields}
)
"""The keys that some format reads."""


def read_lines(file: BufferedReader, named: str) -> Iterator[Found]:
    """Yield the rows of a file with an object per line. Blank lines are ignored.

    Raises :class:`StudyError` as :func:`lines` does, and for a line that is not a JSON object in
    UTF-8, or that has a key twice which some format reads.
    """
    for number, line in lines(file, named):
        if line and not line.isspace():
            where = f"{named}, line {number}"
            row = _checked(_parsed(line, where), where)
            for key in _READ:
                # Of equal keys, readers of JSON differ in which one counts.
                if line.count(b'"%s"' % key.encode()) > 1 and _times(key, line) > 1:
                    raise StudyError(f"{where} has the key {key!r} twice: keep one of them")
            yield where, row


def lines(file: BufferedReader, named: str) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the bytes of each line. One line at a time is in memory.

    Raises :class:`StudyError`, with the line's number, for a line that is too long and for too many
    lines.
    """
    # bytes.splitlines() and str.splitlines() would also split at U+2028 or a lone carriage return,
    # which a JSON string may contain.
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if number > MOST_LINES:
            raise StudyError(f"{named} has over {MOST_LINES} lines: name a file with fewer")
        if len(line) > LONGEST_LINE:
            raise StudyError(
                f"{named}, line {number} is longer than {LONGEST_LINE >> 20} MiB: write one row "
                "per line, and cut its texts"
            )
        yield number, line.removeprefix(_BOM) if number == 1 else line


def read_list(file: BufferedReader, named: str) -> Iterator[Found]:
    """Yield the rows of a file with one list of objects. The whole list is in memory.

    A file that does not begin with a bracket has an object per line, as many a ``.json`` of the
    hub. Raises :class:`StudyError` as :func:`read_lines` does, and for a list that is too large.
    """
    if not file.peek(64).removeprefix(_BOM).lstrip().startswith(b"["):
        yield from read_lines(file, named)
        return
    most = min(free_memory() // _PARSED, LARGEST_LIST)
    content = file.read(most)
    if file.read(1):
        raise StudyError(
            f"{named} is one list of over {most >> 20} MiB: {_WRITE}, in a .jsonl file"
        )
    for number, row in enumerate(_parsed(content.removeprefix(_BOM), named), start=1):
        where = f"{named}, row {number}"
        yield where, _checked(row, where)


def _parsed(content: bytes, where: str) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise StudyError(f"{where} is not UTF-8: save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise StudyError(f"{where} is not valid JSON ({reason}): {_WRITE}") from None


def _checked(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise StudyError(f"{where} is of type {type(row).__name__}, not an object: {_WRITE}")
    return row


def _times(key: str, line: bytes) -> int:
    """How often the row has the key. It is a valid object; the outermost is parsed last."""
    keys: list[str] = []

    def take(pairs: list[tuple[str, object]]) -> None:
        keys[:] = [name for name, _ in pairs]

    json.loads(line, object_pairs_hook=take)
    return keys.count(key)
