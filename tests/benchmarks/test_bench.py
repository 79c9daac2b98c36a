"""``study bench`` on the tiny base: four ways that end at one loss, rows that are summed up, a figure."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest


def test_four_ways_agree_and_are_told_apart(study_cli: Callable[..., Any], tmp_path: Path) -> None:
    small = ["--model", "tiny", "--ranks", "2,4", "--steps", "2", "--to", str(tmp_path), "--plots", str(tmp_path)]
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


def test_ways_that_disagree_are_not_compared(study_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the check itself: losses apart by more than the tolerance end the bench."""
    import importlib.util

    folder = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("contest", folder / "contest.py")
    assert spec is not None
    assert spec.loader is not None
    contest = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "contest", contest)
    spec.loader.exec_module(contest)
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
