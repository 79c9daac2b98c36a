"""Keep transformers, and bitsandbytes beneath it, from talking while a model is looked at or loaded."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

from transformers.utils import logging as transformers_logging

# From here on, not while something runs: it talks as it is imported, by whichever library comes to it first (PEFT, from
# within transformers), and says of every product anew that its inputs are cast.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, log lines or warnings from transformers, whose settings are put back afterwards."""
    verbosity, bars = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
