"""Signals that end ``study train``: the first one finishes the step, a second one stops at once.

A process is in one of three states:

- it trains, or waits for processes that train (:func:`patience`): the first signal is noted, and
  the loop asks for it after each step (:func:`asked`);
- it is a process of a launcher (:func:`listen_in_worker`): as above, whatever it does, because it
  must return how far its pack is;
- otherwise (imports, planning, loading): a signal ends the process, for there is nothing to save.

A launcher may have a handler of its own for a signal. submitit requeues a job with one. That
handler is called after the step too, when the cells have checkpoints (:func:`hand_over`).
"""

import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""The signals that end a sweep. Slurm sends one before the time limit: ``--signal=USR1@60``."""
_LAUNCHERS = (*STOPPING, signal.SIGUSR2)
"""The signals that a launcher may have a handler for."""
_ONE_REQUEST = 0.5
"""Seconds within which several signals are one: a terminal and a launcher both deliver Ctrl-C."""

Handler = Callable[[int, FrameType | None], Any]


class Stopped(BaseException):
    """A signal ended the sweep. No ``except Exception`` on the way out takes it for a failure.

    ``line``: the last line to print, with the command that continues.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
        self.line = f"study: stopped; continue with: {_process.command}"

    @property
    def exit_code(self) -> int:
        """The code of a process that a signal ended, as a shell reports it."""
        return 128 + self.signum


@dataclass
class _Process:
    """The state of this process. ``patient``: what to do at the first signal, per open block."""

    listening: bool = False
    command: str = ""
    worker: bool = False
    asked: int | None = None
    asked_at: float = 0.0
    patient: list[Callable[[], None]] = field(default_factory=list)
    launchers: dict[int, Handler] = field(default_factory=dict)
    handed: int | None = None


_process = _Process()


@contextlib.contextmanager
def listen(arguments: Sequence[str]) -> Iterator[None]:
    """Inside, signals end this process as the module says. ``arguments``: those of ``study``.

    Inside another such block it changes nothing.
    """
    global _process
    if _process.listening:
        yield
        return
    outside = _process, {s: signal.getsignal(s) for s in STOPPING}
    _process = _Process(listening=True, command=shlex.join(["study", *arguments]))
    for signum in STOPPING if _in_main_thread() else ():
        signal.signal(signum, _on_signal)
    try:
        yield
    finally:
        _process, handlers = outside
        for signum, handler in handlers.items() if _in_main_thread() else ():
            signal.signal(signum, handler)


def listen_in_worker() -> None:
    """Listen from now on, unless this process does: it may have been started by a launcher."""
    if _process.listening or not _in_main_thread():
        return
    _process.listening = _process.worker = True
    for signum in _LAUNCHERS:
        found = signal.getsignal(signum)
        if callable(found) and found is not signal.default_int_handler:
            _process.launchers[signum] = found
        if signum in (*STOPPING, *_process.launchers):
            signal.signal(signum, _on_signal)


@contextlib.contextmanager
def patience(on_first: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Inside, the first signal is noted and ``on_first`` is called. A second one raises
    :class:`Stopped`.
    """
    _process.patient.append(on_first)
    try:
        yield
    finally:
        _process.patient.remove(on_first)


def asked() -> int | None:
    """The signal that asked this process to stop after its step; None if there was none."""
    return _process.asked


def hand_over() -> None:
    """Call the launcher's handler of a signal that came during :func:`patience`.

    The handler may end the process. If it returns, training goes on.
    """
    signum, _process.handed = _process.handed, None
    if signum is not None:
        _process.launchers[signum](signum, None)


def handed() -> bool:
    """Whether a signal waits for :func:`hand_over`."""
    return _process.handed is not None


def say(line: str) -> None:
    """Print a line on stderr. A terminal that is gone is no reason to lose a step."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def _on_signal(signum: int, frame: FrameType | None) -> None:
    process = _process
    if signum in process.launchers:
        if process.patient:
            process.handed = signum
        else:
            process.launchers[signum](signum, frame)
        return
    now = time.monotonic()
    if process.asked is None and (process.patient or process.worker):
        process.asked, process.asked_at = signum, now
        if not process.worker:
            say("study: finishing this step, then stopping; press Ctrl-C again to stop at once")
        for on_first in process.patient:
            on_first()
    elif process.asked is None:
        stopped = Stopped(signum)
        say(stopped.line)
        os._exit(stopped.exit_code)
    elif now - process.asked_at > _ONE_REQUEST:
        process.asked_at = now
        raise Stopped(process.asked)


def _in_main_thread() -> bool:
    """Python handles signals in the main thread only."""
    return threading.current_thread() is threading.main_thread()
