"""Time and memory of a command, which runs in a process of its own.

This module imports little: on Linux the peak memory of a child begins at that of the process that
started it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

STUDY = (sys.executable, "-c", "from study.cli import main; main()")
POLL = 0.01
"""Seconds between two looks at whether a command is as far as it is timed."""


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds, processor seconds of all threads, and the peak of memory in GB."""

    seconds: float
    processor: float
    peak_gb: float


def cost(arguments: Sequence[str], log: Path, until: Callable[[], bool] | None = None) -> Cost:
    """What ``study ARGUMENTS`` takes to its end, or until ``until()``, when it is stopped.

    Its output goes to ``log``. Raises :class:`RuntimeError` with the end of the log if it fails or
    ends before ``until()``.
    """
    began = time.perf_counter()
    seconds = None
    with log.open("wb") as output:
        process = subprocess.Popen([*STUDY, *arguments], stdout=output, stderr=output)
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            if until is not None and seconds is None and until():
                seconds = time.perf_counter() - began
                process.send_signal(signal.SIGTERM)
            time.sleep(POLL)
    process.returncode = os.waitstatus_to_exitcode(ended[1])
    if until is None and process.returncode == 0:
        seconds = time.perf_counter() - began
    if seconds is None:
        end = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(
            f"study {' '.join(arguments)[:200]} ended with {process.returncode}:\n{end}"
        )
    usage = ended[2]
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9)
