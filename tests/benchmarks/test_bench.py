"""``study bench`` on the tiny base: four ways that end at one loss, rows that are summed up, a figure."""

import importlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from study.config import CellConfig


def test_four_ways_agree_and_are_told_apart(study_cli: Callable[..., Any], tmp_path: Path) -> None:
    small = [
        "--model",
        "tiny",
        "--ranks",
        "2,4",
        "--steps",
        "2",
        "--to",
        str(tmp_path),
        "--plots",
        str(tmp_path),
    ]
    ran = study_cli("bench", "sweep", "layers", *small)
    assert ran.code == 0, ran.err
    rows = pd.read_parquet(tmp_path / "sweep.parquet")
    assert set(rows["way"]) == {"trainer", "loop", "alone", "packed"}
    steps = rows[rows["variant"] != "set-up"]
    assert steps.groupby(["way", "rank", "scaling"]).size().eq(2).all()
    assert (steps["seconds"] > 0).all()
    assert steps["adapter_flops"].le(steps["factored_flops"]).all()
    assert "the whole sweep, ours, packed against PEFT, tuned loop" in ran.out
    assert "grows as blocks^" in ran.out
    assert (tmp_path / "speed.png").exists()
    again = study_cli("bench", "--read", *small)
    assert again.out == ran.out


@pytest.fixture
def contest(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``benchmarks/contest.py``, as the bench imports it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("contest")


def test_ways_that_disagree_are_not_compared(contest: ModuleType) -> None:
    """By the check itself: losses apart by more than the tolerance end the bench."""
    runs = [contest.Run("loop", losses=[2.0, 1.000]), contest.Run("packed", losses=[2.0, 1.0005])]
    contest.check_agreement(runs, "float32")
    runs.append(contest.Run("alone", losses=[2.0, 1.002]))
    with pytest.raises(SystemExit, match="do not agree"):
        contest.check_agreement(runs, "float32")
    contest.check_agreement(runs, "bf16")


def test_an_unknown_suite_names_the_suites(study_cli: Callable[..., Any]) -> None:
    ran = study_cli("bench", "swep")
    assert ran.code == 2
    assert "choose from sweep, large-steps" in ran.err


def hungry(config: CellConfig) -> int:
    """Trains in micro-batches of two sequences at most; the system ends it where they have more."""
    if config.train.batch_size > 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return config.train.accumulation


def test_a_step_that_does_not_fit_is_made_of_smaller_micro_batches(contest: ModuleType) -> None:
    config = contest.cell("model=tiny", "train.batch_size=8", "train.accumulation=1")
    assert contest.apart(hungry, config) == 4
    assert (config.train.batch_size, config.train.accumulation) == (8, 1)
