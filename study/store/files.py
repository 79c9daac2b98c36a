"""Files that several processes share: atomic writes, and locks that end with their process."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write a file or a folder to. On leaving, it becomes ``path``.

    Readers see the old content or the new, never a part, even after a power cut: the content is on
    disk before the rename, and the rename before this returns. If the block raises, ``path`` stays
    as it was. A folder replaces only an absent or an empty one.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield draft
        for written in (draft, *draft.rglob("*")):
            _sync(written)
        draft.replace(path)
        _sync(path.parent)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                draft.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file atomically (:func:`replacing`)."""
    with replacing(path) as draft:
        draft.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file atomically (:func:`replacing`)."""
    write_bytes(path, text.encode())


def lock(path: Path, timeout: float = -1) -> BaseFileLock:
    """The lock of ``path``, to use in a ``with`` block or by ``acquire`` and ``release``.

    The system frees it when its process ends, however it ends. ``timeout``: seconds to wait for
    another holder before ``TimeoutError`` is raised; negative: without limit.
    """
    return FileLock(path, timeout=timeout, thread_local=False)  # any thread may release it


def is_held(path: Path) -> bool:
    """Whether a live process holds the lock of ``path``. Creates no file; takes about 10 us.

    It asks for a shared lock, so that two readers don't take each other for the holder, and a
    study that the user may only read can be watched.
    """
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems can't sync a folder
            raise
    finally:
        os.close(descriptor)
