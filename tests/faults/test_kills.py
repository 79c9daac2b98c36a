"""Twenty kills of small sweeps, two processes at a time: nothing is lost, nothing trained twice.

``make faults`` has the long version: all sweeps, all launchers, fresh processes.
"""

from pathlib import Path

import pytest

from .kills import Trials
from .scenarios import EVERY

SWEEPS = ("dropout", "adapters", "infinite rank")


@pytest.fixture(scope="module")
def trials(place: Path) -> Trials:
    """The sweeps that are not disturbed train once, for all launchers."""
    return Trials(place / "kills", seed=12, sweeps=SWEEPS)


@pytest.mark.parametrize(("launcher", "kills", "first"), [("basic", 14, 0), ("joblib", 6, 100)])
def test_a_killed_sweep_ends_with_the_tables_of_an_undisturbed_one(
    trials: Trials, launcher: str, kills: int, first: int
) -> None:
    tally = trials.run(kills, launcher, first=first, fresh_every=0, jobs=2)
    assert tally.wrong == []
    assert (tally.differing, tally.twice) == (0, 0)
    assert tally.killed >= kills
    assert max(tally.lost, default=0) <= EVERY
    assert max(tally.after_stop, default=0) == 0
