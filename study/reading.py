"""Files that others wrote: opened, read and parsed within bounds.

Such a file may hold anything, and its path may lead to a pipe or a device, where reading never
ends. Every function raises :class:`StudyError` for what it can't read. The message is one line:
``named`` (the file as the user gave it), the cause, and ``fix``.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from study.errors import StudyError, short

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe, not a file"),
    (stat.S_ISCHR, "a device, not a file"),
    (stat.S_ISBLK, "a device, not a file"),
)


def open_file(path: str | Path, named: str, fix: str) -> BinaryIO:
    """Open a regular file for reading. ``~`` in ``path`` is the user's home folder.

    Nothing else can be opened: a pipe can be read only once, and every process reads its files
    again.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits until another process writes to it.
        descriptor = os.open(Path(path).expanduser(), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise StudyError(f"{named} does not exist: {fix}") from None
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, or an unknown user after ~
        raise StudyError(f"{named} can't be read ({_cause(error)}): {fix}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = next((words for test, words in _KINDS if test(mode)), "not a file")
        raise StudyError(f"{named} is {kind}: {fix}")
    return os.fdopen(descriptor, "rb")


def read_file(path: str | Path, named: str, fix: str, most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes."""
    with open_file(path, named, fix) as file:
        try:
            content = file.read(most + 1)  # files of /proc don't know their size
        except OSError as error:
            raise StudyError(f"{named} can't be read ({_cause(error)}): {fix}") from None
    if len(content) > most:
        raise StudyError(f"{named} is larger than {most / 2**20:g} MiB: {fix}")
    return content


def read_object(path: str | Path, named: str, fix: str, most: int) -> dict[str, Any]:
    """The JSON object in a UTF-8 file of at most ``most`` bytes.

    No key may occur twice in an object, because readers differ in which value they take. Parsing
    takes up to 25 times the memory of the file.
    """
    content = read_file(path, named, fix, most)
    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_distinct)
    except UnicodeDecodeError:
        raise StudyError(f"{named} is not UTF-8 text: {fix}") from None
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{named} is not valid JSON ({_cause(error)}): {fix}") from None
    if not isinstance(value, dict):
        raise StudyError(f"{named} holds a {type(value).__name__}, not an object with keys: {fix}")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {short(key)} occurs twice")
        found[key] = value
    return found


def _cause(error: Exception) -> str:
    """What went wrong, in a few words."""
    text = getattr(error, "strerror", None) or getattr(error, "msg", None) or str(error)
    return " ".join(str(text).split())[:160]
