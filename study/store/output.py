"""Files that a command writes for its user: whole or not at all, and a line if it can't."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from study.errors import StudyError
from study.store.files import write_bytes

_FREE = "free some space and run the same command again"
_MAY = "choose another place, which you may write"
_FIXES = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EFBIG: "raise the limit on the size of files, or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """For a block that writes ``path``. Its ``OSError`` becomes a :class:`StudyError` that names
    the file and the fix.
    """
    try:
        yield
    except OSError as error:
        cause = os.strerror(error.errno) if error.errno else str(error)
        raise StudyError(f"can't write {path}: {cause}: {_FIXES.get(error.errno, _MAY)}") from error


def write_output(path: Path, content: str | bytes) -> None:
    """Write a file atomically, and its folder if that is missing.

    Raises :class:`StudyError` if it can't be written, or if ``path`` is a folder or a device, which
    an atomic write would replace. A symbolic link is replaced, not followed.
    """
    if not path.is_symlink() and path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device"
        raise StudyError(f"can't write {path}: it is {kind}: give the path of a file")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content.encode() if isinstance(content, str) else content)
