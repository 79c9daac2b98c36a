"""Bounds on code that a stranger wrote, such as a chat template. It runs in this process."""

import contextlib
import resource
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import psutil

from study.errors import StudyError

MEMORY = 1 << 30
"""Bytes by which the process may grow."""


@contextlib.contextmanager
def limited(seconds: float, message: str) -> Iterator[None]:
    """Inside, :class:`StudyError` with ``message`` after ``seconds`` of the processor, and
    ``MemoryError`` once the process has grown by :data:`MEMORY`.

    Python delivers signals to the main thread only, so elsewhere the time is not limited. Limits of
    memory exist on Linux.
    """

    def stop(_: int, __: FrameType | None) -> None:
        raise StudyError(message)

    is_main = threading.current_thread() is threading.main_thread()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + MEMORY
    lowered = most if soft == resource.RLIM_INFINITY else min(most, soft)
    before = signal.signal(signal.SIGVTALRM, stop) if is_main else None
    try:
        if psutil.LINUX:
            resource.setrlimit(resource.RLIMIT_AS, (lowered, hard))
        if is_main:
            signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        yield
    finally:
        if is_main:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)
        if psutil.LINUX:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
