"""``study bench checkpoint`` on the tiny base."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.checkpoints import summary


def test_runs_with_and_without_take_turns(study_cli: Callable[..., Any], tmp_path: Path) -> None:
    size = ["--model=tiny", "--rank=3", "--tokens=64", "--steps=3", "--rounds=2"]
    ran = study_cli("bench", "checkpoint", *size, f"--to={tmp_path}", f"--folder={tmp_path}")
    assert ran.code == 0, ran.err
    rows = pd.read_parquet(tmp_path / "checkpoint.parquet")
    assert list(rows["checkpoints"]) == [0, 1, 1, 0]
    assert (rows["seconds"] > 0).all()
    assert (rows["nbytes"] > 0).tolist() == [False, True, True, False]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.parquet"]
    again = study_cli("bench", "checkpoint", "--read", f"--to={tmp_path}")
    assert again.out == ran.out
    assert "a checkpoint at rank 3" in ran.out


@pytest.mark.parametrize(("writing", "every"), [(1.0, "60"), (9.0, "200")])
def test_the_summary_states_the_share_of_the_time(writing: float, every: str) -> None:
    about = {"rank": 8, "steps": 9, "device": "a machine", "torch": "2"}
    costs = {"nbytes": 5e9, "copying": 1.0, "writing": writing, "reading": 2.0}
    rows = pd.DataFrame(
        [
            {"checkpoints": 1, "seconds": 103.0} | costs | about,
            {"checkpoints": 0, "seconds": 100.0} | dict.fromkeys(costs, 0.0) | about,
        ]
    )
    lines = summary(rows).splitlines()
    assert "5 GB" in lines[0]
    assert "100 s without, 103 s with one: +3 s (+3.0%)" in lines[1]
    assert f"one every {every} s of work, {3 / float(every):+.1%} of it" in lines[2]
