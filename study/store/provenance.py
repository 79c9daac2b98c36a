"""The versions of code and packages that made a result."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("study", "torch", "transformers", "peft", "accelerate", "trl", "tokenizers", "safetensors"),
    *("bitsandbytes", "numpy", "pandas", "pyarrow", "hydra-core", "omegaconf"),
)


@cache
def provenance() -> dict[str, Any]:
    """``versions`` of Python and of packages; ``git`` with ``commit`` and ``dirty``, or None.

    ``git`` is None outside a clone of this repository.
    """
    return {"versions": {"python": platform.python_version(), **_versions()}, "git": _git()}


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
