"""How does an adapter's scaling behave as its rank grows?

``study.load("results/quick")`` reads the tables of a finished or running study into a notebook.
Everything else is in the console script (``study --help``).
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from study.store import StudyTables


def load(study_dir: str) -> "StudyTables":
    """Read a study's tables as pandas frames: ``cells``, ``metrics``, ``probes``, ``exponents``.

    Raises :class:`study.errors.StudyError` if ``study_dir`` holds no study.
    """
    from study.store import load_tables  # here, so that `import study` stays instant

    return load_tables(study_dir)
