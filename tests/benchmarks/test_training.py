"""``study bench`` on the tiny base: the ways reach one loss, and rows become text and a figure."""

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.training import Size, TimedRun, base_and_corpus, check_agreement


@pytest.fixture
def bench(works: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """``study bench`` on tiny in a folder. The process of a suite is forked from this one."""
    size = ["--model=tiny", "--steps=2", f"--to={tmp_path}", f"--plots={tmp_path}"]
    return lambda *arguments: works("bench", *size, *arguments)


def test_four_ways_are_timed_and_summarised(bench: Callable[..., Any], tmp_path: Path) -> None:
    """``make gpu-rehearsal`` has the other data."""
    options = ["--ranks=2", "--data=pydoc", "--tokens=512"]
    ran = bench("sweep", *options)
    [table] = tmp_path.glob("sweep*.parquet")
    rows = pd.read_parquet(table)
    assert set(rows["way"]) == {"trainer", "loop", "flattened", "packed", "folded"}
    steps = rows[~rows["variant"].isin(["set-up", "whole sweep"])]
    assert steps.groupby(["way", "rank", "scaling"]).size().eq(2).all()
    assert (steps["seconds"] > 0).all()
    assert "the whole sweep, ours, packed against PEFT, tuned loop" in ran.out
    assert "the whole sweep, ours, in folds" in ran.out
    assert (tmp_path / "speed.png").exists()
    assert bench("--read", *options).out == ran.out


def test_limits_count_the_products_of_a_step(
    bench: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each weight takes four FLOPs a token, forward and backward; A, B and the head add to it."""
    monkeypatch.setattr("benchmarks.training.LIMITS", [(4, 256, "float32"), (8, 256, "float32")])
    ran = bench("limits")
    low, high = pd.read_parquet(tmp_path / "limits.parquet").to_dict("records")
    shapes = base_and_corpus(Size("tiny", [4], 2).cell(256, 4))[0].card.shapes.values()
    weights, sides = sum(map(prod, shapes)), sum(map(sum, shapes))
    assert 1 < low["flops"] / (4 * 256 * weights) < 2
    assert low["flops"] < high["flops"]
    assert high["bytes"] - low["bytes"] == 4 * 8 * 4 * sides
    assert 0 < low["products"] < 1
    assert "step / limit" in ran.out


def test_ways_with_different_losses_are_not_compared() -> None:
    runs = [TimedRun("loop", losses=[2.0, 1.000]), TimedRun("packed", losses=[2.0, 1.0005])]
    check_agreement(runs, "float32")
    runs.append(TimedRun("alone", losses=[2.0, 1.002]))
    with pytest.raises(SystemExit, match="losses differ"):
        check_agreement(runs, "float32")
    check_agreement(runs, "bf16")
    runs.append(TimedRun("alone", losses=[2.1, 1.0]))
    with pytest.raises(SystemExit, match="losses differ"):
        check_agreement(runs, "bf16")
