"""Run libraries without their output, with errors in one line, or with replaced functions."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any
from unittest.mock import patch

from transformers.utils import logging as transformers_logging

from study.errors import StudyError, one_line

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


@contextlib.contextmanager
def replaced(name: str, values: Mapping[Any, Any]) -> Iterator[None]:
    """Context manager: set the attribute ``name`` of each key to its value; restored on exit."""
    with contextlib.ExitStack() as stack:
        for owner, value in values.items():
            stack.enter_context(patch.object(owner, name, value))
        yield


@contextlib.contextmanager
def failing(what: str, fix: str) -> Iterator[None]:
    """Context manager: libraries are quiet, and any error becomes a :class:`StudyError` of
    ``what``, the cause and the ``fix``."""
    try:
        with quiet():
            yield
    except StudyError:
        raise
    except BaseException as error:
        # A panic of a library in Rust is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise StudyError(f"{what} ({one_line(error)}): {fix}") from None
