"""Every call that changes files.

The store changes files only through this module. A call that fails raises :class:`StorageError`,
and every file and name is on disk when a function returns, unless it says otherwise. Opening to
write never follows a symbolic link: a folder of results may come from a stranger. Tests replace
``os`` in this module to make each call fail.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from study.errors import StudyError

_SPACE = (errno.ENOSPC, errno.EDQUOT)
_RIGHTS = (errno.EACCES, errno.EPERM, errno.EROFS)
_PATHS = (errno.ENOTDIR, errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)

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


class Damaged(StudyError):
    """A file of results is missing or holds other bytes than were written."""


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
    """Inside, an ``OSError`` becomes a :class:`StorageError` that names ``path``."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise _storage_error(path, error) from None


# Single calls.


def create(path: Path) -> int:
    """Open a file for writing, made if absent, with its content as it is. Returns its descriptor.

    Raises :class:`StorageError` for a symbolic link and, without waiting, for a pipe.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with storing(path):
        return os.open(path, flags, 0o666)


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
        if path.exists() and not path.is_dir():  # else another process has just deleted it
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))


def rename(source: Path, target: Path) -> None:
    """Give a file or folder another name. It replaces ``target``, and a folder there is deleted."""
    if target.is_dir() and not target.is_symlink():
        remove(target)
    with storing(target):
        os.replace(source, target)
    sync(target.parent)
    if source.parent != target.parent:
        sync(source.parent)


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
    """Yield a path beside ``path`` to write a file or a folder to. On leaving, it becomes ``path``.

    Readers see the old content or the new, never a part, even after a power cut: the content is on
    disk before the rename, and the rename before this returns. If the block raises, ``path`` stays
    as it was; an ``OSError`` becomes a :class:`StorageError`. A folder that is there is replaced,
    but not in one step.
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


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a whole file atomically, as :func:`replacing` does.

    The draft has one name and is locked, so that the next write uses what a killed process left,
    and two processes that write the file at once do so in turn.
    """
    draft = path.with_name(path.name + DRAFT)
    if draft.is_dir():
        remove(draft)
    with storing(path):
        file = _locked_draft(draft)
    try:
        cut(file, 0, path)
        write(file, content, path)
        sync_file(file, path)
        rename(draft, path)
    except BaseException:
        with contextlib.suppress(StorageError):
            remove(draft)
        raise
    finally:
        os.close(file)


def _locked_draft(draft: Path) -> int:
    while True:
        file = create(draft)
        with contextlib.suppress(OSError):  # a disk without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if same_file(file, draft):
            return file
        os.close(file)  # another process has given it its name


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file atomically (:func:`write_bytes`)."""
    write_bytes(path, text.encode())


def write_output(path: Path, content: str | bytes) -> None:
    """Write a file that a user asked for, and its folder if that is missing.

    A symbolic link is replaced, not followed. Raises :class:`StudyError` if ``path`` is a folder or
    a device, which an atomic write would replace, and :class:`StorageError` if it can't be written.
    """
    if path.is_dir() or (path.exists() and not path.is_file()):
        kind = "a folder" if path.is_dir() else "a device"
        raise StudyError(f"can't write {path}: it is {kind}; give the path of a file")
    make_folder(path.parent)
    write_bytes(path, content.encode() if isinstance(content, str) else content)


def same_file(file: int, path: Path) -> bool:
    """Whether ``path`` still names the open ``file``."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except OSError:
        return False


# Files compared with what was written.


def described(path: Path) -> dict[str, Any]:
    """The ``bytes`` and the ``sha256`` of a file, as :func:`verified` expects them."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def verified(path: Path, expected: Mapping[str, Any]) -> bytes:
    """The content of a file. Raises :class:`Damaged` if it is not the one ``expected``."""
    content = read_whole(path)
    if len(content) != expected["bytes"]:
        raise Damaged(f"{path.name} has {len(content)} bytes instead of {expected['bytes']}")
    if hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise Damaged(f"{path.name} is damaged: its hash is not the one in record.json")
    return content


def read_whole(path: Path) -> bytes:
    """The content of a file. Raises :class:`Damaged` if it is missing, or a pipe or a device."""
    try:
        if not path.exists():
            raise Damaged(f"{path.name} is missing")
        if not path.is_file():
            raise Damaged(f"{path.name} is not a file")
        return path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path.name} can't be read: {error.strerror}") from None
