"""``study bench`` on the tiny base: the ways reach one loss, and rows become text and a figure."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks import training
from benchmarks.commands import BESIDE, SUITES
from benchmarks.training import RUNS, Size, TimedRun, check_agreement
from study.config import CellConfig


@pytest.fixture
def bench(study_cli: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """``study bench`` on tiny in a folder. The process of a suite is forked from this one."""
    size = ["--model=tiny", "--steps=2", f"--to={tmp_path}", f"--plots={tmp_path}"]
    return lambda *arguments: study_cli("bench", *size, *arguments)


@pytest.mark.parametrize(("data", "way"), [("xbrl_extract", "alone"), ("pydoc", "flattened")])
def test_four_ways_are_timed_and_summarised(
    bench: Callable[..., Any], tmp_path: Path, data: str, way: str
) -> None:
    options = ["--ranks=2", f"--data={data}", "--tokens=512"]
    ran = bench("sweep", *options)
    assert ran.code == 0, ran.err
    [table] = tmp_path.glob("sweep*.parquet")
    rows = pd.read_parquet(table)
    assert set(rows["way"]) == {"trainer", "loop", way, "packed"}
    steps = rows[rows["variant"] != "set-up"]
    assert steps.groupby(["way", "rank", "scaling"]).size().eq(2).all()
    assert (steps["seconds"] > 0).all()
    assert "the whole sweep, ours, packed against PEFT, tuned loop" in ran.out
    assert (tmp_path / "speed.png").exists()
    assert bench("--read", *options).out == ran.out


def test_folds_are_timed_in_bf16(bench: Callable[..., Any], tmp_path: Path) -> None:
    ran = bench("folds", "--precision=bf16", "--ranks=2", "--tokens=64")
    assert ran.code == 0, ran.err
    rows = pd.read_parquet(tmp_path / "folds.parquet")
    assert list(rows["way"]) == ["packed", "folded"] * 3
    assert set(rows["precision"]) == {"bf16"}
    assert set(rows["tokens"]) == {64}
    assert "- 2 cells: ours, packed " in ran.out


def test_probes_are_timed_beside_runs_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run takes as many seconds as it measures sites; those of the first step don't count."""
    from benchmarks.summary import summarise

    def packed(config: CellConfig) -> TimedRun:
        sites = len(config.probes.sites) if config.probes.every else 1
        return TimedRun("packed", steps=[9.0, *[float(sites)] * (config.train.steps - 1)])

    monkeypatch.setattr(training, "packed", packed)
    table = training.measure("probes", Size("tiny", [4, 8], 2)).assign(device="this machine")
    text = summarise({"probes": table})
    assert "- activations, every step: +135.7 % (+135.7 to +135.7)" in text  # 66 s over 28 s
    heads = "| rank 16, 192 tokens | rank 16, 1024 tokens | rank 1024, 192 tokens |"
    assert heads in text
    assert "| A and B | 2.00 | 2.00 | 2.00 | 2.00 |" in text


def test_ways_with_different_losses_are_not_compared() -> None:
    runs = [TimedRun("loop", losses=[2.0, 1.000]), TimedRun("packed", losses=[2.0, 1.0005])]
    check_agreement(runs, "float32")
    runs.append(TimedRun("alone", losses=[2.0, 1.002]))
    with pytest.raises(SystemExit, match="losses differ"):
        check_agreement(runs, "float32")
    check_agreement(runs, "bf16")


def test_an_unknown_suite_names_the_suites(study_cli: Callable[..., Any]) -> None:
    ran = study_cli("bench", "swep")
    assert ran.code == 2
    assert ran.err.startswith("study: unknown suite 'swep': choose from sweep, large-steps")


def test_help_lists_the_suites_and_imports_no_torch() -> None:
    code = (
        "import sys; from study.cli import cli; cli(['bench', '--help'], standalone_mode=False);"
        "print({'torch', 'pandas', 'peft', 'matplotlib'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *shown, imported = ran.stdout.splitlines()
    assert imported == "set()"
    assert {*SUITES, *BESIDE} <= {line.split()[0] for line in shown if line.startswith("  ")}
    assert set(SUITES) == set(RUNS)


@pytest.mark.long
def test_every_command_is_timed_on_many_cells(study_cli: Callable[..., Any]) -> None:
    ran = study_cli("bench", "scale", "--cells=1")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    names = ("train", "train", "train,", "status", "check", "analyze", "dashboard")
    assert tuple(line.split()[1] for line in lines) == names
    assert all(line.endswith(" GB") for line in lines)
