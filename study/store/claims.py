"""Claims: which process may write a cell, on one machine and on several that share a disk.

A claim is two files in the cell's folder:

- ``lock``, under ``flock``. The system frees it when its process ends, so it decides between
  processes of one machine. On a network disk it may be blind to other machines.
- ``holder.N``, which names the machine and the process. Its modification time is a heartbeat. A
  claim of another machine is stale when it has not been renewed for :data:`STALE_AFTER` seconds.
  Who takes it over creates ``holder.N+1``, which only one process can do, and the earlier holder
  finds it before its next write.
"""

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from study.errors import StudyError, printable
from study.store.files import (
    DRAFT,
    NO_LOCKS,
    create,
    make_folder,
    name_new,
    probe,
    remove,
    storing,
    touch,
    write,
)

LOCK = "lock"
HOLDER = "holder."

STALE_AFTER = 120.0
"""Seconds without a heartbeat after which a claim of another machine may be taken over."""
HEARTBEAT = 20.0
"""Seconds between two heartbeats."""

_PATIENCE = 0.02
"""Seconds to wait for the lock. A reader that checks it holds it for some microseconds."""


class ClaimLost(StudyError):
    """Another process took the cell over, or its folder was deleted. Nothing more is written."""


class Claim:
    """The right to write the cell in ``folder``, until :meth:`release` or the process's end."""

    def __init__(self, folder: Path, lock: int, holder: Path, number: int, file: int) -> None:
        self.folder = folder
        self._lock, self._holder, self._file = lock, holder, file
        self._next = folder / f"{HOLDER}{number + 1}"
        self._known = os.fstat(file)  # an open file's inode gets no second file
        self._ended = False

    @property
    def is_lost(self) -> bool:
        """Whether the claim was released or taken over. Takes about 5 us."""
        if self._ended:
            return True
        try:
            found = os.stat(self._holder)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # the disk does not answer: the next write will tell
            return False
        return not os.path.samestat(found, self._known) or self._next.exists()

    def check(self) -> None:
        """Raises :class:`ClaimLost` if another process may write the cell now."""
        if self.is_lost:
            raise ClaimLost(
                f"cell {self.folder.name} now belongs to another process, or its folder "
                f"{self.folder} was deleted: run the same command again to train what is left"
            )

    def beat(self) -> None:
        """Renew the claim, unless it is lost."""
        with _GUARD, suppress(OSError):  # after an error, the next heartbeat tries again
            if not self.is_lost:  # not after the release either, which closes the file
                touch(self._file)

    def release(self) -> None:
        """Let other processes claim the cell. A second call does nothing."""
        if self._ended:
            return
        with _GUARD:
            _HELD.discard(self)
            lost = self.is_lost
            self._ended = True
        if not lost:
            with suppress(OSError):  # it becomes stale
                remove(self._holder)
        self._close()

    def disown(self) -> None:
        """In a child process: forget the claim, which its parent holds."""
        self._ended = True
        self._close()

    def _close(self) -> None:
        os.close(self._file)
        os.close(self._lock)


def claim(folder: Path) -> Claim | None:
    """Claim the cell in ``folder``, which is created. None if a live process holds it.

    Takes about 0.2 ms. Raises :class:`~study.store.files.StorageError` if the folder can't be
    written.
    """
    make_folder(folder)
    lock = _locked(folder / LOCK)
    if lock is None:
        return None
    claimed = None
    try:
        claimed = _hold(folder, lock)
    finally:
        if claimed is None:
            os.close(lock)
    if claimed is not None:
        _start_heartbeat(claimed)
    return claimed


def is_claimed(folder: Path) -> bool:
    """Whether a live process holds the cell in ``folder``. It writes nothing.

    The heartbeat of another machine is compared with this machine's clock.
    """
    held = probe(folder / LOCK)
    if held:
        return True
    return any(_is_live(path, time.time(), held is False) for path in _holders(folder).values())


def claimant(folder: Path) -> str:
    """The process that claimed the cell in ``folder`` last: ``pid 123 on host``."""
    holders = _holders(folder)
    try:
        about = json.loads(holders[max(holders)].read_bytes())
        return f"pid {int(about['pid'])} on {printable(about['host'], 80)}"
    except (OSError, ValueError, KeyError, TypeError):  # it has just released the cell
        return "another process"


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock of ``path``; None if another process holds it."""
    until = time.monotonic() + _PATIENCE
    while True:
        file = create(path)
        with suppress(BlockingIOError):
            _flock(file)
            if _is_file(file, path):  # else its folder was moved since it was opened
                return file
        os.close(file)
        if time.monotonic() > until:
            return None
        time.sleep(0.005)


def _flock(file: int) -> bool:
    """Lock an open file. False if its file system has no locks: the holder decides alone.

    Raises ``BlockingIOError`` if another process holds the lock.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return True


def _hold(folder: Path, lock: int) -> Claim | None:
    """Become the holder; None if a live process of another machine is."""
    token = secrets.token_hex(8)
    about = {"host": socket.gethostname(), "boot": boot_id(), "pid": os.getpid(), "token": token}
    draft = folder / f"{HOLDER}{token}{DRAFT}"
    try:
        now = _written(draft, json.dumps(about).encode())
        earlier = _holders(folder)
        if any(_is_live(path, now, _flock(lock)) for path in earlier.values()):
            return None
        number = max(earlier, default=0) + 1
        holder = folder / f"{HOLDER}{number}"
        if not name_new(draft, holder):
            return None
    finally:
        remove(draft)
    if set(_holders(folder)) - set(earlier) != {number}:  # another one began from other numbers
        remove(holder)
        return None
    for path in earlier.values():
        remove(path)
    with storing(holder):
        return Claim(folder, lock, holder, number, os.open(holder, os.O_RDONLY | os.O_CLOEXEC))


def _written(path: Path, content: bytes) -> float:
    """Write a file and return its modification time: now, by the clock that dates heartbeats."""
    file = create(path)
    try:
        write(file, content, path)
        return os.fstat(file).st_mtime
    finally:
        os.close(file)


def _is_live(holder: Path, now: float, locked: bool) -> bool:
    """Whether the process that ``holder`` names may still write. ``now``: seconds since the epoch.

    ``locked``: no live process of this machine has the lock.
    """
    about = {}
    try:
        age = now - holder.stat().st_mtime
        if holder.is_file():
            about = json.loads(holder.read_bytes())
    except FileNotFoundError:
        return False
    except OSError:  # the disk does not answer
        return True
    except (ValueError, RecursionError):  # not yet whole
        pass
    of_this_machine = isinstance(about, dict) and about.get("boot") == boot_id()
    return abs(age) < STALE_AFTER and not (locked and of_this_machine)


def _holders(folder: Path) -> dict[int, Path]:
    """The holders of a cell by number. The highest is the last."""
    found = {}
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            number = entry.name.removeprefix(HOLDER)
            if number != entry.name and number.isdecimal() and number.isascii():
                found[int(number)] = folder / entry.name
    return found


def _is_file(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except OSError:
        return False


@cache
def boot_id() -> str:
    """What processes of one running kernel share, in which ``flock`` can be trusted."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


# The heartbeat: one thread for all claims of the process.

_HELD: set[Claim] = set()
_GUARD = threading.Lock()
_THREADS: list[threading.Thread] = []


def _start_heartbeat(claimed: Claim) -> None:
    with _GUARD:
        _HELD.add(claimed)
        if not _THREADS:
            _THREADS.append(threading.Thread(target=_beat, name="study-heartbeat", daemon=True))
            _THREADS[0].start()


def _beat() -> None:
    while True:
        time.sleep(HEARTBEAT)
        with _GUARD:
            held = tuple(_HELD)
        for claimed in held:
            claimed.beat()


def _after_fork() -> None:
    """A child process holds no claim. Closing its copies leaves the parent's lock as it is."""
    global _GUARD
    _GUARD = threading.Lock()
    for claimed in _HELD:
        claimed.disown()
    _HELD.clear()
    _THREADS.clear()


os.register_at_fork(after_in_child=_after_fork)
