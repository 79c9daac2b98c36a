"""How this process keeps the memory that it frees."""

import ctypes
import sys
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 32 * 2**20  # glibc takes no larger threshold
_NEVER = -1


def keep_freed_memory() -> bool:
    """Keep freed blocks of up to 32 MiB for the next allocation instead of handing them back to the system.

    Activations are a few MiB each, and glibc returns such blocks at once: the next operation then takes them page by
    page, zeroed by the kernel, which costs a norm or a SwiGLU three times its arithmetic and a step of SmolLM2 some
    7 %. Larger blocks still go back. Returns whether it could be arranged; elsewhere than on glibc nothing is done.
    """
    mallopt = _glibc("mallopt")
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST) and mallopt(_M_TRIM_THRESHOLD, _NEVER))


def hand_back() -> bool:
    """Give the system what is kept and free now; whether there was any, and it could be done."""
    malloc_trim = _glibc("malloc_trim")
    return malloc_trim is not None and bool(malloc_trim(0))


def _glibc(name: str) -> Any:
    """A function of glibc; None where there is none, or another C library."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
