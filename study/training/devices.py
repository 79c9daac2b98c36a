"""The device that a process trains on: which one, how fast it is, and what it holds."""

import ctypes
import platform
import resource
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch

from study.errors import StudyError


def choose_device(name: str) -> torch.device:
    """The device that ``device=...`` names; ``auto`` is CUDA where there is a CUDA device.

    Raises :class:`StudyError` if CUDA is asked for and torch sees none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise StudyError(
            "device=cuda, but torch sees no CUDA device: use device=cpu or device=auto"
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def describe_device(device: torch.device) -> dict[str, Any]:
    """What a record says of the device: its type, its name and the number of CPU threads."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = (names or [platform.processor() or platform.machine()])[0]
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {"device": device.type, "device_name": name, "threads": torch.get_num_threads()}


def peak_memory_gb(device: torch.device) -> float:
    """The most memory held so far, in GiB.

    On CUDA: by tensors since the last reset. On a CPU: by the whole process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def release_memory(device: torch.device) -> None:
    """Return cached memory to the device and restart the count of its peak."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed.

    CUDA has its own exception. The CPU allocator raises RuntimeError, and Python MemoryError.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error)


@cache
def matmul_rate(device: torch.device) -> float:
    """FLOP/s of a square float32 product on ``device``: the best of five, once in a process.

    On a CPU a small product has the rate of a large one, and takes 0.02 s.
    """
    side = 1024 if device.type == "cpu" else 2048
    a, b = (torch.randn(side, side, device=device) for _ in range(2))

    def seconds() -> float:
        began = time.perf_counter()
        torch.mm(a, b)
        if device.type != "cpu":
            torch.get_device_module(device).synchronize(device)
        return time.perf_counter() - began

    seconds()
    return 2 * side**3 / min(seconds() for _ in range(5))


def keep_freed_memory() -> None:
    """Keep freed blocks of up to 32 MiB for the next allocation; larger ones go back to the system.

    Activations are a few MiB each, and glibc returns such blocks to the system at once. The next
    operation then gets them page by page, zeroed by the kernel. That costs a norm or a SwiGLU three
    times its arithmetic, and a step of SmolLM2 about 7 %. Other C libraries stay as they are.
    """
    library: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "mallopt"):  # numbers of malloc.h
        library.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD: glibc takes no larger one
        library.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
