"""What the commands take on a study of many tiny cells.

This module imports little: on Linux the peak memory of a child begins at that of the process that
started it.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SWEEP = (
    *("-m", "name=scale", "model=tiny", "device=cpu", "data.heldout=4", "data.sequence_length=32"),
    *("train.steps=2", "train.batch_size=2", "adapter.scaling=lora,rslora"),
    "adapter.rank=1,2,4,8,16",
)
CELLS_OF_A_SEED = 10


def cost(arguments: list[str], log: Path) -> str:
    """Wall-clock time, processor time of all threads and peak of memory of ``study ARGUMENTS``.

    Its output goes to ``log``. Raises :class:`RuntimeError` with the end of the log if it fails.
    """
    began = time.perf_counter()
    with log.open("wb") as output:
        study = [sys.executable, "-c", "from study.cli import main; main()", *arguments]
        process = subprocess.Popen(study, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        end = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"study {arguments[0]} ended with {process.returncode}:\n{end}")
    seconds, processor = time.perf_counter() - began, usage.ru_utime + usage.ru_stime
    memory = usage.ru_maxrss * 1024 / 1e9
    return f"{seconds:6.1f} s  {processor:6.1f} s of processor  {memory:5.2f} GB"


def costs(cells: int) -> Iterator[str]:
    """A line for each command. ``cells`` is rounded up to a multiple of ten."""
    with tempfile.TemporaryDirectory() as scratch:
        study, log = f"{scratch}/scale", Path(scratch) / "log"
        seeds = ",".join(map(str, range(-(-cells // CELLS_OF_A_SEED))))
        sweep = [*SWEEP, f"seed={seeds}", f"results_dir={scratch}"]
        for name, arguments in {
            "train --plan": ["train", "--plan", *sweep],
            "train": ["train", *sweep],
            "train, nothing left": ["train", *sweep],
            "status": ["status", study],
            "check": ["check", study],
            "analyze": ["analyze", study],
            "dashboard --export": ["dashboard", study, "--export", f"{scratch}/page.html"],
        }.items():
            yield f"study {name:<22} {cost(arguments, log)}"
