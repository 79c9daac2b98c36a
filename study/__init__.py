"""How does an adapter's scaling behave as its rank grows?

``study.load("results/quick")`` gives a notebook the tables of a finished or running study; everything else is the
console script ``study`` (``study --help``).
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from study.store import StudyTables


def load(study_dir: str) -> "StudyTables":
    """Read a study's tables as pandas frames: ``cells``, ``metrics``, ``probes``, ``exponents``.

    Raises :class:`study.errors.StudyError` where ``study_dir`` holds no study.
    """
    from study.store import load_tables  # not at import: `import study` must stay instant

    return load_tables(study_dir)
