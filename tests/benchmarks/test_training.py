"""``study bench`` on the tiny base: the ways reach one loss, and rows become text."""

import pandas as pd
import pytest

from benchmarks.training import TimedRun, check_agreement


def test_four_ways_are_timed_and_summarised(works, tmp_path):
    """The process of a suite is forked from this one. ``make gpu-rehearsal`` has the other data."""
    options = ["--model=tiny", "--steps=2", f"--to={tmp_path}"]
    options += ["--ranks=2", "--data=pydoc", "--tokens=512"]
    ran = works("bench", "sweep", *options)
    [table] = tmp_path.glob("sweep*.parquet")
    rows = pd.read_parquet(table)
    assert set(rows["way"]) == {"trainer", "loop", "flattened", "packed", "folded"}
    steps = rows[~rows["variant"].isin(["set-up", "whole sweep"])]
    assert steps.groupby(["way", "rank", "scaling"]).size().eq(2).all()
    assert (steps["seconds"] > 0).all()
    assert "the whole sweep, ours, packed against PEFT, tuned loop" in ran.out
    assert "the whole sweep, ours, in folds" in ran.out
    assert works("bench", "--read", *options).out == ran.out


def test_ways_with_different_losses_are_not_compared():
    runs = [TimedRun("loop", losses=[2.0, 1.000]), TimedRun("packed", losses=[2.0, 1.0005])]
    check_agreement(runs, "float32")
    runs.append(TimedRun("alone", losses=[2.0, 1.002]))
    with pytest.raises(SystemExit, match="losses differ"):
        check_agreement(runs, "float32")
    check_agreement(runs, "bf16")
    runs.append(TimedRun("alone", losses=[2.1, 1.0]))
    with pytest.raises(SystemExit, match="losses differ"):
        check_agreement(runs, "bf16")
