"""Messages of transformers and bitsandbytes: silenced while they run, and shortened in errors."""

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator

from transformers.utils import logging as transformers_logging

# For the whole process: bitsandbytes logs when transformers or PEFT first imports it, and warns
# about the cast of its inputs in every product.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, log lines or warnings from transformers. Its settings are restored."""
    verbosity = transformers_logging.get_verbosity()
    had_progress_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_progress_bars:
            transformers_logging.enable_progress_bar()


_STDERR = threading.Lock()


@contextlib.contextmanager
def no_stderr() -> Iterator[None]:
    """Nothing reaches the standard error stream of the process: libraries in Rust write to it
    directly, a backtrace for example. Keep the block short: other threads are silenced too.
    """
    with _STDERR:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


def quoted(error: Exception) -> str:
    """The message of another library's exception on one line of at most 160 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."
