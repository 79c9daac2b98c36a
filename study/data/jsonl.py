"""``data=jsonl``: a file with one ``{"context": str, "target": str}`` per line, such as FinLoRA's.

Other keys and blank lines are ignored.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from study.data.examples import Example
from study.errors import StudyError

_ROW = '{"context": "...", "target": "..."}'


def read(path: str) -> Iterator[Example]:
    """Yield the examples of the file at ``path``, in order.

    Raises :class:`StudyError` if the file can't be read, and, with the line's number, for a line
    that is not an object with the strings ``context`` and ``target``, or whose target is blank.
    """
    content = _content(path).removeprefix(b"\xef\xbb\xbf")
    # str.splitlines() would also split at U+2028, which a JSON string may contain.
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            yield _example(line, f"{path}, line {number}")


def _content(path: str) -> bytes:
    file, named = Path(path).expanduser(), f"data.path={path!r}"
    if file.is_dir():
        raise StudyError(f"{named} is a folder: name a .jsonl file in it")
    if not file.exists():
        raise StudyError(f"{named} does not exist: name a file with one {_ROW} per line")
    try:
        return file.read_bytes()
    except OSError as error:
        raise StudyError(
            f"{named} can't be read ({error.strerror}): check its permissions"
        ) from None


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
    return Example(_text(row, "context", where), _text(row, "target", where))


def _text(row: dict[str, object], key: str, where: str) -> str:
    if key not in row:
        keys = ", ".join(map(repr, row)) or "none"
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
