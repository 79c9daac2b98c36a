"""Every call that changes files, and locks, which the system frees when their process ends.

The store changes files only through this module. A call that fails raises :class:`StorageError`.
Every file and name is on disk when a function returns, unless it says otherwise. Tests replace
``os`` in this module to make each call fail.

A lock is ``flock`` on an empty file. It works between the processes of a machine, and between
machines if their shared disk supports it. On a disk without locks, nothing is locked.
"""

import contextlib
import errno
import fcntl
import hashlib
import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from study.errors import StudyError

DRAFT = ".partial"
"""The end of the name of a file that is being written. A killed process may leave it."""
LOCK = "lock"
"""The file in a cell's folder whose lock its writer holds."""


class StorageError(StudyError, OSError):
    """A file can't be written: the disk is full, the folder read-only, the device broken.

    ``errno`` is the system's number of the cause. Files written before are complete, so the same
    command resumes when the cause is gone.
    """


class Damaged(StudyError):
    """A file of results is missing or holds other bytes than were written."""


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Context manager: an ``OSError`` becomes a :class:`StorageError` that names ``path``."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "free some space" if full else "check the path, its rights and the disk"
        cause = os.strerror(error.errno) if error.errno else error
        told = StorageError(f"can't write {path}: {cause}; {fix}, then rerun the command")
        told.errno = error.errno
        raise told from None


# Single calls.


def create(path: Path) -> int:
    """Open a file to append to it, made if absent. Returns its descriptor.

    Follows no symbolic link: a folder of results may come from a stranger.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with storing(path):
        return os.open(path, flags, 0o666)


def append(file: int, content: bytes | memoryview, path: Path) -> None:
    """Append ``content`` to the open ``file`` of ``path``: all of it or nothing. Does not sync."""
    left = memoryview(content)
    with storing(path):
        size = os.fstat(file).st_size
        try:
            while left:
                left = left[os.write(file, left) :]
        except OSError:
            with contextlib.suppress(OSError):  # readers stop before a part of a row
                os.ftruncate(file, size)
            raise


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
        for folder in reversed([place for place in (path, *path.parents) if not place.exists()]):
            with contextlib.suppress(FileExistsError):  # another process made it
                os.mkdir(folder)
            sync(folder.parent)
        if path.exists() and not path.is_dir():  # otherwise another process has just deleted it
            raise NotADirectoryError(errno.ENOTDIR, "it is a file")


def rename(source: Path, target: Path) -> None:
    """Give a file or folder another name. It replaces ``target``, and a folder there is deleted."""
    if target.is_dir() and not target.is_symlink():
        remove(target)
    with storing(target):
        os.replace(source, target)
    for folder in {target.parent, source.parent}:
        sync(folder)


def remove(path: Path) -> None:
    """Delete a file, or a folder and all in it, if it exists. A link is deleted, not followed.

    The name may come back after a power cut.
    """
    with storing(path), contextlib.suppress(FileNotFoundError):
        if path.is_symlink() or not path.is_dir():
            os.unlink(path)
            return
        for inner in path.iterdir():
            remove(inner)
        os.rmdir(path)


# Whole files.


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context manager: yields a path, whose content becomes ``path`` on exit.

    Readers see the old or the new content, never a part, even after a power cut: the content is on
    disk before the rename, and the rename before this returns. If the block raises, ``path`` does
    not change. An existing folder is replaced, but not in one step.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(3)}{DRAFT}")
    try:
        with storing(path):
            yield draft
            for written in (draft, *draft.rglob("*")):
                sync(written)
            rename(draft, path)
    finally:
        with contextlib.suppress(StorageError):
            remove(draft)


def write_bytes(path: Path, content: bytes | memoryview) -> dict[str, Any]:
    """Write a whole file atomically, as :func:`replacing` does. Returns its description."""
    with replacing(path) as draft:
        file = create(draft)
        try:
            append(file, content, path)
        finally:
            os.close(file)
    return described(content)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file atomically (:func:`write_bytes`)."""
    write_bytes(path, text.encode())


def write_output(path: Path, content: str | bytes) -> None:
    """Write a file that a user asked for, and its folder if that is missing.

    Raises :class:`StudyError` if ``path`` is a folder or a device, which an atomic write would
    replace, and :class:`StorageError` if it can't be written.
    """
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device"
        raise StudyError(f"can't write {path}: it is {kind}; give the path of a file")
    make_folder(path.parent)
    write_bytes(path, content.encode() if isinstance(content, str) else content)


def described(content: bytes | memoryview) -> dict[str, Any]:
    """The ``bytes`` and the ``sha256`` of a file's content, for a record."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def read(path: Path, expected: Mapping[str, Any] | None = None) -> bytes:
    """The content of a file. Raises :class:`Damaged` if it can't be read, or is not the one that is
    ``expected`` (:func:`described`).
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path.name} can't be read: {error.strerror}") from None
    if expected is not None and described(content) != expected:
        raise Damaged(f"{path.name} is damaged: its size or hash is not that in the record")
    return content


# Locks.


class Lock:
    """The lock of ``path``, held from when it is made until :meth:`release`; a context manager.

    ``timeout``: seconds to wait for another holder before ``TimeoutError`` is raised. Raises
    :class:`StorageError` if the file can't be made.
    """

    def __init__(self, path: Path, timeout: float = math.inf) -> None:
        self.path = path
        self._file: int | None = None
        until = time.monotonic() + timeout
        while self._file is None:
            file = create(path)
            if _flock(file, fcntl.LOCK_EX) and _is_file_of(file, path):
                self._file = file
                break
            os.close(file)
            if time.monotonic() > until:
                raise TimeoutError(f"another process holds {path}")
            time.sleep(0.005)

    def release(self) -> None:
        """Free the lock. A second call does nothing."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _flock(file: int, kind: int) -> bool:
    """Lock an open file; False if another process holds the lock."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a disk without locks
    return True


def _is_file_of(file: int, path: Path) -> bool:
    """Whether ``path`` still names the open ``file``."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except OSError:
        return False


def is_held(path: Path) -> bool:
    """Whether a live process holds the lock of ``path``. Creates no file; takes about 10 us.

    It asks for a shared lock. So two readers don't mistake each other for the holder, and it works
    on a read-only study.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _flock(file, fcntl.LOCK_SH)
    finally:
        os.close(file)


class Claim(Lock):
    """The right to write the cell in ``folder``, until :meth:`release` or the process's end."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / LOCK, timeout=0.02)  # a reader holds it for microseconds
        self.folder = folder

    def check(self) -> None:
        """Raises :class:`StorageError` if the cell's folder was deleted. Takes about 5 us."""
        with storing(self.folder):
            if self._file is None or not _is_file_of(self._file, self.path):
                raise FileNotFoundError(errno.ENOENT, "it was deleted")


def claim(folder: Path) -> Claim | None:
    """Claim the cell in ``folder``, which is created. None if a live process holds it."""
    make_folder(folder)
    try:
        return Claim(folder)
    except TimeoutError:
        return None


def is_claimed(folder: Path) -> bool:
    """Whether a live process holds the cell in ``folder``. It writes nothing."""
    return is_held(folder / LOCK)
