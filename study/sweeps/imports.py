"""Importing torch and transformers in less time."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collections() -> Iterator[None]:
    """Inside, no garbage is collected; afterwards, never what exists then.

    The import of torch and transformers makes half a million objects that stay. Collections that
    look at them take a fifth of its time, and as much of the time to plan thousands of cells.

    They are collected again when Python ends. Otherwise extension modules that count their objects
    (Triton's, which CUDA builds of torch import) print a page of warnings about leaks.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)
        if enabled:
            gc.enable()
