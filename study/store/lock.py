"""Locks, which the system frees when their process ends, however it ends.

A lock is ``flock`` on a file, which stays empty. It works between the processes of a machine, and
between machines whose disk passes locks on. A disk without locks keeps nobody out.
"""

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path
from typing import Self

from study.errors import StudyError
from study.store.files import create, make_folder, same_file, storing

LOCK = "lock"
"""The file in a cell's folder whose lock its writer holds."""
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What ``flock`` answers on a file system that lacks it."""
_PATIENCE = 0.02
"""Seconds to wait for the lock of a cell. A reader that looks at it holds it for microseconds."""
_POLL = 0.005


class ClaimLost(StudyError):
    """The folder of a claimed cell was deleted. Nothing more is written."""


class Lock:
    """The lock of ``path``, to use in a ``with`` block or by :meth:`acquire` and :meth:`release`.

    ``timeout``: seconds to wait for another holder before ``TimeoutError`` is raised; negative:
    without limit.
    """

    def __init__(self, path: Path, timeout: float = -1) -> None:
        self.path, self.timeout = path, timeout
        self._file: int | None = None

    @property
    def is_locked(self) -> bool:
        """Whether this object holds the lock."""
        return self._file is not None

    def acquire(self) -> None:
        """Raises ``TimeoutError``, and :class:`StorageError` if the file can't be made."""
        until = time.monotonic() + self.timeout
        while self._file is None:
            file = create(self.path)
            if _flock(file, self.path) and same_file(file, self.path):
                self._file = file
                return
            os.close(file)
            if self.timeout >= 0 and time.monotonic() > until:
                raise TimeoutError(f"another process holds {self.path}")
            time.sleep(_POLL)

    def release(self) -> None:
        """Free the lock. A second call does nothing."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @property
    def is_lost(self) -> bool:
        """Whether the lock was released, or its file deleted. Takes about 5 us."""
        return self._file is None or not same_file(self._file, self.path)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _flock(file: int, path: Path) -> bool:
    """Lock an open file; False if another process holds the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            os.close(file)
            with storing(path):
                raise
    return True


def is_held(path: Path) -> bool:
    """Whether a live process holds the lock of ``path``. Takes about 10 us.

    It creates no file. It asks for a shared lock, so that two readers don't take each other for the
    holder, and a study that the user may only read can be watched.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # even of a pipe
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in NO_LOCKS
    finally:
        os.close(file)
    return False


class Claim(Lock):
    """The right to write the cell in ``folder``, until :meth:`release` or the process's end."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / LOCK, _PATIENCE)
        self.folder = folder

    def check(self) -> None:
        """Raises :class:`ClaimLost` if the cell is not this process's."""
        if self.is_lost:
            raise ClaimLost(
                f"the folder {self.folder} was deleted while its cell was trained: run the same "
                "command again to train what is left"
            )


def claim(folder: Path) -> Claim | None:
    """Claim the cell in ``folder``, which is created. None if a live process holds it.

    Raises :class:`~study.store.files.StorageError` if the folder can't be written.
    """
    make_folder(folder)
    claimed = Claim(folder)
    with contextlib.suppress(TimeoutError):
        claimed.acquire()
        return claimed
    return None


def is_claimed(folder: Path) -> bool:
    """Whether a live process holds the cell in ``folder``. It writes nothing."""
    return is_held(folder / LOCK)
