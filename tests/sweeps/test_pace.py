"""The time left that a sweep says first is near what it then takes, on recorded step times."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from study.config import CellConfig
from study.models import ModelCard, describe
from study.store import cell_folders
from study.sweeps.agenda import Planned
from study.sweeps.cost import relative_cost, step_shares
from study.sweeps.pace import CellTime, seconds_left

Build = Callable[..., CellConfig]
ROOT = Path(__file__).parents[2]
SCHEDULE = (
    *("train.steps=10", "train.batch_size=4", "data.heldout=8", "data.sequence_length=48"),
    *("probes.steps=[0,1,10]", "probes.batch=[train,heldout]"),
)
"""That of the quick study."""


class Replay:
    """A sweep of one process whose cells took the recorded ``seconds`` at each of their steps."""

    def __init__(self, cells: "Recorded"):
        configs = [config for config, _ in cells]
        card = describe(configs[0].model)
        self.costs = [relative_cost(config, card) for config in configs]
        self.shares = [step_shares(config) for config in configs]
        self.rows = [seconds for _, seconds in cells]
        self.ends = np.cumsum([seconds[-1] for seconds in self.rows])
        self.begins = self.ends - [seconds[-1] for seconds in self.rows]
        self.steps = configs[0].train.steps

    def left(self, now: float) -> float | None:
        """What the sweep says ``now`` seconds after its first cell began."""
        cells = [self._cell(number, now) for number in range(len(self.rows))]
        return seconds_left(
            cells,
            _utc(0),
            now,
            first_step=lambda cell: float(self.rows[int(cell.folder.name)][0]),
            last_seen=lambda cell: self._last_row(int(cell.folder.name), now),
        )

    def first(self) -> tuple[float, float]:
        """When it says a time first, and the ratio of that time to the true one."""
        for now in np.arange(0.5, self.ends[-1], 0.5):
            if (left := self.left(now)) is not None:
                return now, left / (self.ends[-1] - now)
        raise AssertionError("it never says one")

    def _done(self, cell: int, now: float) -> int:
        return int((self.begins[cell] + self.rows[cell] <= now).sum()) - 1

    def _last_row(self, cell: int, now: float) -> float:
        return float(self.begins[cell] + self.rows[cell][self._done(cell, now)])

    def _cell(self, number: int, now: float) -> CellTime:
        done = self._done(number, now)
        record = {
            "config": {"train": {"steps": self.steps}},
            "status": "complete" if done == self.steps else "running",
            "started": _utc(self.begins[number]),
            "steps_done": done,
        }
        plan = Planned(record, 1, self.costs[number], shares=self.shares[number])
        place = Path(str(number))
        after_first = plan.share(0)
        return CellTime(record, place, plan.cost, 0, 0.0, after_first, plan.share(done))


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(float(seconds), UTC).isoformat()


Recorded = list[tuple[CellConfig, "np.ndarray[Any, Any]"]]


@pytest.fixture
def quick(cell: Build) -> Recorded:
    """The cells of the committed quick study in their order, and the seconds at each step."""
    folders = cell_folders(ROOT / "results/reference/quick")
    records = [(json.loads((f / "record.json").read_text()), f) for f in folders]
    found = []
    for record, folder in sorted(records, key=lambda pair: pair[0]["started"]):
        config, metrics = record["config"], pd.read_parquet(folder / "metrics.parquet")
        rank, seed = config["adapter"]["rank"], config["data"]["seed"]
        one = cell("model=smollm2", f"adapter.rank={rank}", f"data.seed={seed}", *SCHEDULE)
        found.append((one, metrics["seconds"].to_numpy(float)))
    return found


@pytest.mark.smollm2
def test_the_first_time_said_is_near_what_the_quick_study_took(quick: Recorded) -> None:
    """Six minutes. Time in proportion to steps said 21, because the first two are measured."""
    replay = Replay(quick)
    when, ratio = replay.first()
    print(f"first said at {when} s: {ratio:.2f} of the time that was left")
    assert when < 10
    assert 0.5 < ratio < 1.5
    for now in np.arange(when, 300.0, 10.0):
        left = replay.left(now)
        assert left is not None
        assert 0.5 < left / (replay.ends[-1] - now) < 1.5


@pytest.mark.smollm2
def test_a_slow_first_step_is_not_that_of_all_cells(quick: Recorded) -> None:
    """Imports and warm-up of 30 s before the first row, in the first cell only."""
    (config, first), *others = quick
    replay = Replay([(config, first + 30.0), *others])
    _, ratio = replay.first()
    assert 0.5 < ratio < 1.5


@pytest.mark.smollm2
def test_no_time_is_said_before_it_can_be_told(quick: Recorded) -> None:
    replay = Replay(quick)
    assert replay.left(replay.rows[0][0] + 0.1) is None, "one step"
    assert replay.left(replay.rows[0][1] + 0.1) is None, "two steps"
    short = Replay([(config, seconds / 100) for config, seconds in quick])
    assert short.left(1.0) is None, "one second"


def test_shares_are_those_of_the_kinds_of_steps(cell: Build) -> None:
    config = cell("train.steps=6", "probes.steps=[0]", "train.eval_every=0", "probes.batch=[train]")
    # Step 0: the step, its statistics and the loss after it. The last step measures nothing.
    whole = 6 + 0.6 + 1 / 3
    first = 1 + 0.6 + 1 / 3
    assert step_shares(config) == [[0, pytest.approx(first / whole)], [6, pytest.approx(1.0)]]
    assert step_shares(cell("train.steps=6", "probes.steps=null", "train.eval_every=0"))[-1] == [
        6,
        pytest.approx(1.0),
    ]


def test_shares_stay_few_and_end_at_one(cell: Build) -> None:
    many = step_shares(cell("train.steps=5000", "probes.steps=null", "probes.every=7"))
    assert len(many) <= 66
    assert many[-1] == [5000, pytest.approx(1.0)]
    assert many == sorted(many)


def test_on_a_tiny_model_the_rank_hardly_matters(cell: Build) -> None:
    card: ModelCard = describe(cell().model)
    low, high = (relative_cost(cell(f"adapter.rank={rank}"), card) for rank in (2, 64))
    assert 1.0 < high / low < 1.4
