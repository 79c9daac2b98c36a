"""The device that a process trains on: its choice, its speed, and its memory."""

import platform
import resource
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

from study.errors import StudyError


def choose_device(name: str) -> torch.device:
    """The device that ``device=...`` names; ``auto`` is CUDA where there is a CUDA device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise StudyError("device=cuda, but torch sees no CUDA device: use device=auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def describe_device(device: torch.device) -> dict[str, Any]:
    """The device in a record: its type, its name and the number of CPU threads."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = (names or [platform.processor() or platform.machine()])[0]
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {"device": device.type, "device_name": name, "threads": torch.get_num_threads()}


def peak_memory_gb(device: torch.device) -> float:
    """The most GiB held so far: on CUDA by tensors since the last reset, else by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def release_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


@cache
def matmul_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a square product in ``precision``, once in a process. A CPU needs no large one."""
    side = 1024 if device.type == "cpu" else 8192
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    known = {"mm": torch.mm, "a": a, "b": b}
    timer = Timer("mm(a, b)", globals=known, num_threads=torch.get_num_threads())
    return 2 * side**3 / timer.timeit(5).mean
