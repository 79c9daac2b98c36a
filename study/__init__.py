"""How does an adapter's scaling behave as its rank grows?

- ``study.load("results/quick")`` reads the tables of a finished or running study into a notebook;
- ``study.record("results/mine", peft_model, optimizer)`` writes your own training as a study.

Everything else is in the console script (``study --help``).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from study.store import StudyTables


def load(study_dir: str) -> "StudyTables":
    """Read a study's tables as pandas frames: ``cells``, ``metrics``, ``probes``, ``exponents``.

    Raises :class:`study.errors.StudyError` if ``study_dir`` holds no study.
    """
    from study.store import load_tables  # here, so that `import study` stays instant

    return load_tables(study_dir)


def __getattr__(name: str) -> Any:
    """``record``, on first use: its module imports torch, which readers of tables do without."""
    if name == "record":
        return import_module("study.integrations.loops").record
    raise AttributeError(f"module 'study' has no attribute {name!r}")
