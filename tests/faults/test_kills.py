"""Twenty kills of small sweeps, two processes at a time: nothing is lost, nothing trained twice.

``make faults`` has the long version: all sweeps, all launchers, fresh processes.
"""

from pathlib import Path

import pytest

from .kills import Trials
from .scenarios import EVERY

SWEEPS = ("dropout", "adapters", "infinite rank")


@pytest.mark.parametrize(("launcher", "kills"), [("basic", 14), ("joblib", 6)])
def test_a_killed_sweep_ends_with_the_tables_of_an_undisturbed_one(
    place: Path, launcher: str, kills: int
) -> None:
    trials = Trials(place / launcher, seed=12, sweeps=SWEEPS)
    tally = trials.run(kills, launcher, first=0, fresh_every=0, jobs=2)
    assert tally.wrong == []
    assert (tally.differing, tally.twice) == (0, 0)
    assert tally.killed >= kills
    assert max(tally.lost, default=0) <= EVERY
    assert max(tally.after_stop, default=0) == 0
