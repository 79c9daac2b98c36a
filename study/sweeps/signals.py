"""Signals that end ``study train``: the first one finishes the step, a second one stops at once.

A process is in one of three states:

- it trains, or waits for processes that train (:func:`patience`): the first signal is noted, and
  the loop asks for it after each step (:func:`asked`);
- it is a process of a launcher (:func:`listen_in_worker`): as above, at any time, because it must
  return the progress of its pack;
- otherwise (imports, planning, loading): a signal ends the process, because nothing can be lost.

A launcher may have its own handler for a signal: submitit's requeues a job. That handler is also
called after the step, when the cells have checkpoints (:func:`hand_over`).
"""

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from study.errors import command_line

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""The signals that end a sweep. Slurm sends one before the time limit: ``--signal=USR1@60``."""
_ONE_REQUEST = 0.5
"""Seconds within which several signals are one: a terminal and a launcher both deliver Ctrl-C."""


class Stopped(BaseException):
    """A signal ended the sweep; no ``except Exception`` catches it. ``command`` resumes."""

    def __init__(self, signum: int, command: str = "") -> None:
        super().__init__(signum, command)
        self.line = f"study: stopped; continue with: {command}"
        self.exit_code = 128 + signum


class Listener:
    """The handler of a process's signals. ``handed``: a signal for the launcher's handler.
    ``patient``: what to call at the first signal."""

    def __init__(self, command: str = "", is_worker: bool = False) -> None:
        self.command, self.is_worker = command, is_worker
        self.asked: int | None = None
        self.handed: int | None = None
        self.launchers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self.patient: list[Callable[[], None]] = []
        self._one_request_ends = math.inf

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if signum in self.launchers:
            self.handed = signum
            if not self.patient:
                hand_over()
        elif self.asked is not None:
            if (now := time.monotonic()) > self._one_request_ends:
                self._one_request_ends = now + _ONE_REQUEST
                raise self.stopped(self.asked)
        elif self.patient or self.is_worker:
            self.asked = signum
            if not self.is_worker:
                say("study: finishing this step, then stopping; press Ctrl-C again to stop at once")
            self._one_request_ends = time.monotonic() + _ONE_REQUEST
            for on_first in self.patient:
                on_first()
        else:
            say(self.stopped(signum).line)
            os._exit(self.stopped(signum).exit_code)

    def stopped(self, signum: int) -> Stopped:
        return Stopped(signum, self.command)


def current() -> Listener:
    """The listener of this process; one that gets no signal if there is none."""
    found = signal.getsignal(signal.SIGTERM)
    return found if isinstance(found, Listener) else Listener()


@contextlib.contextmanager
def listen(arguments: Sequence[str]) -> Iterator[None]:
    """Context manager: signals end this process as above. ``arguments``: those of ``study``."""
    if not _may_listen():
        yield
        return
    listener = Listener(command_line(*arguments))
    before = {signum: signal.signal(signum, listener) for signum in STOPPING}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def listen_in_worker() -> None:
    """Listen from now on, unless this process does: it may have been started by a launcher."""
    if not _may_listen():
        return
    listener = Listener(is_worker=True)
    for signum in (*STOPPING, signal.SIGUSR2):
        found = signal.getsignal(signum)
        if callable(found) and found is not signal.default_int_handler:
            listener.launchers[signum] = found
        if signum in (*STOPPING, *listener.launchers):
            signal.signal(signum, listener)


def _may_listen() -> bool:
    """Python handles signals in the main thread only."""
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and not isinstance(signal.getsignal(signal.SIGTERM), Listener)


@contextlib.contextmanager
def patience(on_first: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Context manager: the first signal is noted and calls ``on_first``; a second one raises."""
    patient = current().patient
    patient.append(on_first)
    try:
        yield
    finally:
        patient.remove(on_first)


def asked() -> int | None:
    """The signal that asked this process to stop after its step; None if there was none."""
    return current().asked


def hand_over() -> None:
    """If a signal came for the launcher's handler, call it. If it returns, training goes on."""
    listener = current()
    signum, listener.handed = listener.handed, None
    if signum is not None:
        listener.launchers[signum](signum, None)


def say(line: str) -> None:
    """Print a line on stderr. If the terminal is gone, training goes on."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
