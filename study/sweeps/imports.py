"""Importing torch and transformers in less time."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collections() -> Iterator[None]:
    """Inside, no garbage is collected; afterwards, never what exists then.

    The import of torch and transformers makes half a million objects that stay. Collections that
    look at them take a fifth of its time, and as much of the time to plan thousands of cells.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
