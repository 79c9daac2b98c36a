"""What a record says of the code, the packages and the machine that made a result."""

import platform
import resource
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "study",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "trl",
    "tokenizers",
    "safetensors",
    "bitsandbytes",
    "numpy",
    "pandas",
    "pyarrow",
    "hydra-core",
    "omegaconf",
)


@cache
def provenance(device: torch.device) -> dict[str, Any]:
    """Versions, git commit with dirty flag (None outside a clone), and the device in words."""
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "git": _git(),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
    }


def peak_memory_gb(device: torch.device) -> float:
    """The most memory held so far: on CUDA by tensors since the last reset, on a CPU by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git() -> dict[str, Any] | None:
    source = Path(__file__).parents[1]
    if not (source.parent / ".git").exists():
        return None

    def ask(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(source), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {
            "commit": ask("rev-parse", "HEAD"),
            "dirty": bool(ask("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
