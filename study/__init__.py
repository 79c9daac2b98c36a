"""How does an adapter's scaling behave as its rank grows?

- ``study.load("results/quick")`` reads the tables of a finished or running study into a notebook;
- ``study.record("results/mine", peft_model, optimizer)`` writes your own training as a study.

Everything else is in the console script (``study --help``).
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from study import errors as errors  # so that `except study.errors.StudyError` needs no import

__version__ = "0.1.0"

if TYPE_CHECKING:
    from study.store import StudyTables


def load(study_dir: str) -> "StudyTables":
    """A study's tables as pandas frames: ``cells``, ``metrics``, ``probes``, ``exponents``, ...

    The exponents are computed from the others; if the study does not allow it, they are empty and a
    warning says why. Raises :class:`study.errors.StudyError` if ``study_dir`` holds no study.
    """
    # Here, so that `import study` stays instant.
    from study.analysis import with_derived
    from study.store import load_measured

    measured = load_measured(study_dir)
    try:
        return with_derived(measured)
    except errors.StudyError as error:
        logging.getLogger(__name__).warning("no exponents of %s: %s", study_dir, error)
        return measured


def __getattr__(name: str) -> Any:
    """``record``, on first use: its module imports torch, which readers of tables do without."""
    if name == "record":
        return import_module("study.integrations.recording").record
    raise AttributeError(f"module 'study' has no attribute {name!r}")
