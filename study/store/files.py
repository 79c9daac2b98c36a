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
from typing import Any

import platformdirs

from study.errors import StudyError

DRAFT = ".partial"
"""The end of the name of a file that is being written. A killed process may leave it."""
LOCK = "lock"
"""The file in a cell's folder whose lock its writer holds."""


class StorageError(StudyError, OSError):
    """A file can't be written. ``errno``: the cause. Files written before are complete, so the
    command can be run again."""


class Damaged(StudyError):
    """A file of results is missing or holds other bytes than were written."""


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
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
    """The descriptor of a file to append to, made if absent. A link is not followed."""
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


def remove(*paths: Path) -> None:
    """Delete files, links, or folders and all in them. They may come back after a power cut."""
    for path in paths:
        with storing(path), contextlib.suppress(FileNotFoundError):
            if path.is_symlink() or not path.is_dir():
                os.unlink(path)
            else:
                remove(*path.iterdir())
                os.rmdir(path)


# Whole files.


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context manager: yields a path, whose content becomes ``path`` on exit, unless it raises.

    Readers see the old or the new content, even after a power cut: the content is on disk before
    the rename, and the rename before this returns. A folder is replaced, but not in one step.
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


def write_bytes(path: Path, *content: bytes | memoryview) -> dict[str, Any]:
    """Write a whole file, in parts, as :func:`replacing` does. Returns its description. Unlocked
    drafts of killed processes are deleted from the folder."""
    with contextlib.ExitStack() as held, replacing(path) as draft:
        file = held.enter_context(Lock(draft)).file
        for part in content:
            append(file, part, path)
        has_locks = is_held(draft)
    for left in path.parent.glob(f"*{DRAFT}") if has_locks else ():
        with contextlib.suppress(StorageError, TimeoutError), Lock(left, timeout=0):
            remove(left)
    return described(*content)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file atomically (:func:`write_bytes`)."""
    write_bytes(path, text.encode())


def write_output(path: Path, content: str | bytes) -> None:
    """Write a file that a user asked for, and its folder if that is missing."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device"
        raise StudyError(f"can't write {path}: it is {kind}; give the path of a file")
    make_folder(path.parent)
    write_bytes(path, content.encode() if isinstance(content, str) else content)


def check_writable(*folders: Path) -> None:
    """Write an empty file in each folder, or where it will be, and delete it."""
    for folder in folders:
        place = next(place for place in (folder, *folder.parents) if place.exists())
        with Lock(place / f"{os.getpid()}{DRAFT}") as draft:
            remove(draft.path)


def cache_folder() -> Path:
    """The user's cache folder, created if absent. The variable ``STUDY_CACHE`` moves it."""
    place = os.environ.get("STUDY_CACHE") or platformdirs.user_cache_dir("study")
    folder = Path(place).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"can't create the cache folder {folder} ({error.strerror})"
        raise StudyError(f"{why}: set STUDY_CACHE to a folder that you may write") from None
    return folder


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def described(*content: bytes | memoryview) -> dict[str, Any]:
    whole = hashlib.sha256()
    for part in content:
        whole.update(part)
    return {"bytes": sum(map(len, content)), "sha256": whole.hexdigest()}


def read(path: Path, expected: Mapping[str, Any] | None = None) -> bytes:
    """The content of a file, which must be the ``expected`` one (:func:`described`)."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path.name} can't be read: {error.strerror}") from None
    if expected is not None and not described(content).items() <= expected.items():
        raise Damaged(f"{path.name} is damaged: its size or hash has changed")
    return content


def check_no_link(*folders: Path) -> None:
    """Raises :class:`StudyError` if a folder of a study is a link, which may lead out of it."""
    for folder in folders:
        if folder.is_symlink():
            raise StudyError(f"{folder} is a link: put the folder itself there")


# Locks.


class Lock(contextlib.AbstractContextManager["Lock"]):
    """The lock of ``path``, held until :meth:`release`; a context manager. ``timeout``: seconds to
    wait before ``TimeoutError``."""

    def __init__(self, path: Path, timeout: float = math.inf) -> None:
        self.path, self.file = path, create(path)
        until = time.monotonic() + timeout
        while not (_flock(self.file, fcntl.LOCK_EX) and _is_file_of(self.file, path)):
            os.close(self.file)
            if time.monotonic() > until:
                raise TimeoutError(f"another process holds {path}")
            time.sleep(0.005)
            self.file = create(path)
        self._is_held = True

    def release(self) -> None:
        """Free the lock. A second call does nothing."""
        if self._is_held:
            os.close(self.file)
            self._is_held = False

    def check(self) -> None:
        """Raises :class:`StorageError` if the lock's folder was deleted. Takes about 5 us."""
        with storing(self.path.parent):
            if not (self._is_held and _is_file_of(self.file, self.path)):
                raise FileNotFoundError(errno.ENOENT, "it was deleted")

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
    """Whether a live process holds the lock of ``path``. It asks for a shared lock, so that two
    readers don't mistake each other for the holder."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _flock(file, fcntl.LOCK_SH)
    finally:
        os.close(file)


def claim(folder: Path) -> Lock | None:
    """The lock of the cell in ``folder``, which is created. None if a live process holds it."""
    check_no_link(folder.parent, folder)
    make_folder(folder)
    try:
        return Lock(folder / LOCK, timeout=0.02)  # a reader holds it for microseconds
    except TimeoutError:
        return None


def is_claimed(folder: Path) -> bool:
    """Whether a live process holds the cell in ``folder``. It writes nothing."""
    return is_held(folder / LOCK)
