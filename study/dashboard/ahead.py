"""What running sweeps have still to train, for the head of the page.

The agendas of sweeps belong to :mod:`study.sweeps`, which the dashboard does not import: ``study
dashboard`` passes a function in.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple


class Ahead(NamedTuple):
    """``waiting``: cells that have not begun. ``seconds_left``: None if that is not known."""

    waiting: int = 0
    seconds_left: float | None = None


LookAhead = Callable[[Path], Ahead]
"""What the live sweeps in the folder of a study have still to train."""


def nothing_ahead(study_dir: Path) -> Ahead:
    """For a page without sweeps."""
    return Ahead()


def ahead_of(folders: Sequence[Path], look: LookAhead) -> Ahead:
    """All studies together: the sum of the cells, and the time until the last sweep ends."""
    found = [look(folder) for folder in folders]
    times = [one.seconds_left for one in found if one.seconds_left is not None]
    return Ahead(sum(one.waiting for one in found), max(times, default=None))
