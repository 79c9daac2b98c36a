"""What the commands take on a study of many tiny cells.

This module imports little: on Linux the peak memory of a child begins at that of the process that
started it.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

STUDY = (sys.executable, "-c", "from study.cli import main; main()")
SWEEP = (
    *("-m", "name=scale", "model=tiny", "device=cpu", "data.heldout=4", "data.sequence_length=32"),
    *("train.steps=2", "train.batch_size=2", "adapter.scaling=lora,rslora"),
    "adapter.rank=1,2,4,8,16",
)
CELLS_OF_A_SEED = 10


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds, processor seconds of all threads, and the peak of memory in GB."""

    seconds: float
    processor: float
    peak_gb: float


def cost(arguments: Sequence[str], log: Path) -> Cost:
    """What ``study ARGUMENTS`` takes. Its output goes to ``log``.

    Raises :class:`RuntimeError` with the end of the log if it fails.
    """
    began = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen([*STUDY, *arguments], stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        end = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"study {arguments[0]} ended with {process.returncode}:\n{end}")
    seconds = time.perf_counter() - began
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9)


def costs(cells: int) -> Iterator[str]:
    """A line for each command. ``cells`` is rounded up to a multiple of ten."""
    with tempfile.TemporaryDirectory() as scratch:
        study, log = Path(scratch) / "scale", Path(scratch) / "log"
        seeds = ",".join(map(str, range(-(-cells // CELLS_OF_A_SEED))))
        sweep = [*SWEEP, f"seed={seeds}", f"results_dir={scratch}"]
        commands = {
            "train --plan": ["train", "--plan", *sweep],
            "train": ["train", *sweep],
            "train, nothing left": ["train", *sweep],
            "status": ["status", str(study)],
            "check": ["check", str(study)],
            "analyze": ["analyze", str(study)],
            "dashboard --export": ["dashboard", str(study), "--export", f"{scratch}/page.html"],
        }
        for name, arguments in commands.items():
            taken = cost(arguments, log)
            yield (
                f"study {name:<22} {taken.seconds:6.1f} s  {taken.processor:6.1f} s of processor  "
                f"{taken.peak_gb:5.2f} GB"
            )
