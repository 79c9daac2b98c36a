"""Every call that changes files, and the locks that end with their process.

The store changes files only through this module. A call that fails raises :class:`StorageError`,
and every file and name is on disk when a function returns, unless it says otherwise. Tests replace
``os`` in this module to make each call fail.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock

from study.errors import StudyError

_SPACE = (errno.ENOSPC, errno.EDQUOT)
_RIGHTS = (errno.EACCES, errno.EPERM, errno.EROFS)
_PATHS = (errno.ENOTDIR, errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What ``flock`` answers on a file system that lacks it."""

DRAFT = ".partial"
"""The end of the name of a file that is being written. A killed process may leave it."""


class StorageError(StudyError, OSError):
    """A file can't be written: the disk is full, the folder read-only, the device broken.

    ``errno`` is the system's number of the cause. What was written before is whole, so the same
    command continues when the cause is gone.
    """

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.errno = number

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.errno)


def _storage_error(path: Path, error: OSError) -> StorageError:
    number = error.errno
    if number in _SPACE:
        fix = "free some space, then run the same command again"
    elif number in _RIGHTS:
        fix = "choose a folder that you may write"
    elif number in _PATHS:
        fix = "give another path"
    else:
        fix = "check the disk, then run the same command again"
    # Other libraries give an error of the system words of their own.
    cause = os.strerror(number) if number else error.strerror or str(error) or type(error).__name__
    return StorageError(f"can't write {path}: {cause}; {fix}", number)


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Inside, an ``OSError`` becomes a :class:`StorageError` that names ``path``.

    The draft of a file is named as the file.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise _storage_error(_without_draft(path), error) from None


def _without_draft(path: Path) -> Path:
    """The file that ``path`` becomes when it is written; ``path`` itself if it is no draft."""
    name, _, end = path.name.partition(f".{os.getpid()}.")
    return path.with_name(name) if end.endswith(DRAFT) else path


# Single calls.


def create(path: Path) -> int:
    """Open an empty file for writing and return its descriptor. Neither is on disk yet."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with storing(path):
        return os.open(path, flags | os.O_NONBLOCK, 0o666)  # a pipe is an error, not a wait


def write(file: int, content: bytes | memoryview, path: Path) -> None:
    """Write all of ``content`` to the descriptor ``file`` of ``path``. It is not on disk yet."""
    left = memoryview(content)
    with storing(path):
        while left:
            left = left[os.write(file, left) :]


def cut(file: int, size: int, path: Path) -> None:
    """Cut the open ``file`` of ``path`` to ``size`` bytes and continue to write there."""
    with storing(path):
        os.ftruncate(file, size)
        os.lseek(file, size, os.SEEK_SET)


def sync_file(file: int, path: Path) -> None:
    """Wait until the content of the open ``file`` of ``path`` is on disk."""
    with storing(path):
        os.fsync(file)


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on disk."""
    with storing(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError:
            if not path.is_dir():  # some network file systems can't sync a folder
                raise
        finally:
            os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, if absent."""
    with storing(path):
        missing = [place for place in (path, *path.parents) if not place.exists()]
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):  # another process made it
                os.mkdir(folder)
            sync(folder.parent)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))


def rename(source: Path, target: Path) -> None:
    """Give a file or folder another name. A file replaces ``target``."""
    with storing(target):
        os.replace(source, target)
    sync(target.parent)
    if source.parent != target.parent:
        sync(source.parent)


def remove(path: Path) -> None:
    """Delete a file, if it exists. The name may come back after a power cut."""
    with storing(path), contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove_folder(path: Path) -> None:
    """Delete a folder and all in it, if it exists. It may come back after a power cut."""
    if path.is_symlink() or not path.is_dir():
        remove(path)
        return
    with storing(path):
        for inner in path.iterdir():
            remove_folder(inner)
        os.rmdir(path)


def name_new(draft: Path, path: Path) -> bool:
    """Give ``draft`` the second name ``path`` and return True; False if ``path`` exists.

    Of several processes, one gets True. The name is not on disk yet.
    """
    with storing(path):
        try:
            os.link(draft, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _copy_new(draft, path)
    return True


def _copy_new(draft: Path, path: Path) -> bool:
    """:func:`name_new` on a file system without hard links. Readers may see an empty file."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return False
    try:
        write(file, draft.read_bytes(), path)
    finally:
        os.close(file)
    return True


def touch(file: int) -> None:
    """Set the modification time of an open file to now, by the clock of its file system."""
    os.utime(file)


# Whole files.


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write a file or a folder to. On leaving, it becomes ``path``.

    Readers see the old content or the new, never a part, even after a power cut: the content is on
    disk before the rename, and the rename before this returns. If the block raises, ``path`` stays
    as it was; an ``OSError`` becomes a :class:`StorageError`. A folder replaces only an absent or
    an empty one.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(3)}{DRAFT}")
    try:
        with storing(path):
            yield draft
            for written in (draft, *draft.rglob("*")):
                sync(written)
            rename(draft, path)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                draft.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file atomically (:func:`replacing`)."""
    with replacing(path) as draft:
        file = create(draft)
        try:
            write(file, content, path)
        finally:
            os.close(file)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file atomically (:func:`replacing`)."""
    write_bytes(path, text.encode())


# Locks.


def lock(path: Path, timeout: float = -1) -> BaseFileLock:
    """The lock of ``path``, to use in a ``with`` block or by ``acquire`` and ``release``.

    The system frees it when its process ends, however it ends. ``timeout``: seconds to wait for
    another holder before ``TimeoutError`` is raised; negative: without limit.
    """
    return FileLock(path, timeout=timeout, thread_local=False)  # any thread may release it


def is_held(path: Path) -> bool:
    """Whether a live process of this machine holds the lock of ``path`` (:func:`probe`)."""
    return probe(path) is True


def probe(path: Path) -> bool | None:
    """:func:`is_held`; None if the file system has no locks. Takes about 10 us.

    It creates no file. It asks for a shared lock, so that two readers don't take each other for the
    holder, and a study that the user may only read can be watched.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # even of a pipe
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(file)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        return None if error.errno in NO_LOCKS else True
    return False
