"""``data=jsonl``: a file with one ``{"context": str, "target": str}`` per line, such as FinLoRA's.

Other keys and blank lines are ignored.
"""

import json
from collections.abc import Iterator

from study.data.examples import Example
from study.errors import StudyError, short
from study.reading import open_file

LONGEST_LINE = 4 << 20
"""Bytes. About a million tokens, and parsing takes at most 25 times as much memory."""
MOST_LINES = 10_000_000

_ROW = '{"context": "...", "target": "..."}'
_FIX = f"name a .jsonl file with one {_ROW} per line"


def read(path: str) -> Iterator[Example]:
    """Yield the examples of the file at ``path``, in order. One line at a time is in memory.

    Raises :class:`StudyError` if the file can't be read or has too many lines, and, with the line's
    number, for a line that is too long, is not an object with the strings ``context`` and
    ``target``, has one of them twice, or whose target is blank.
    """
    named = f"data.path={short(path, 200)}"
    # bytes.splitlines() and str.splitlines() would also split at U+2028 or a lone carriage return,
    # which a JSON string may contain.
    for number, line in enumerate(_lines(path, named), start=1):
        if number > MOST_LINES:
            raise StudyError(f"{named} has over {MOST_LINES} lines: name a file with fewer")
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line or line.isspace():
            continue
        where = f"{named}, line {number}"
        if len(line) > LONGEST_LINE:
            raise StudyError(
                f"{where} is longer than {LONGEST_LINE >> 20} MiB: write one {_ROW} per line, and "
                "cut its context"
            )
        yield _example(line, where)


def _lines(path: str, named: str) -> Iterator[bytes]:
    """The lines of a file. Of a line that is too long, the beginning."""
    with open_file(path, named, _FIX) as file:
        try:
            while line := file.readline(LONGEST_LINE + 1):
                yield line
        except OSError as error:
            raise StudyError(f"{named} can't be read ({error.strerror}): {_FIX}") from None


def _example(line: bytes, where: str) -> Example:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise StudyError(f"{where} is not UTF-8: save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise StudyError(
            f"{where} is not valid JSON ({reason}): write one {_ROW} per line"
        ) from None
    if not isinstance(row, dict):
        raise StudyError(
            f"{where} is of type {type(row).__name__}, not an object: write one {_ROW} per line"
        )
    for key in ("context", "target"):
        # Of equal keys, readers of JSON differ in which one counts.
        if line.count(b'"%s"' % key.encode()) > 1 and _times(key, line) > 1:
            raise StudyError(f"{where} has the key {key!r} twice: keep one of them")
    return Example(_text(row, "context", where), _text(row, "target", where))


def _times(key: str, line: bytes) -> int:
    """How often the row has the key. It is a valid object; the outermost is parsed last."""
    keys: list[str] = []

    def take(pairs: list[tuple[str, object]]) -> None:
        keys[:] = [name for name, _ in pairs]

    json.loads(line, object_pairs_hook=take)
    return keys.count(key)


def _text(row: dict[str, object], key: str, where: str) -> str:
    if key not in row:
        keys = short(list(row)).strip("[]") or "none"
        raise StudyError(
            f"{where} has no key {key!r} (its keys: {keys}): write one {_ROW} per line"
        )
    text = row[key]
    if not isinstance(text, str):
        raise StudyError(
            f"{where}: {key!r} is of type {type(text).__name__}, not a string: put it in quotes"
        )
    if key == "target" and not text.strip():
        raise StudyError(f"{where}: 'target' is empty: fill it in or delete the line")
    try:
        text.encode()
    except UnicodeEncodeError:  # tokenizers reject it
        raise StudyError(
            f"{where}: {key!r} has an unpaired surrogate: write the whole character"
        ) from None
    return text
