"""``study bench`` on the tiny base: the ways reach one loss, and rows become text and a figure."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks import commands, suites
from benchmarks.commands import SUITES, earlier_rows
from benchmarks.suites import ASKED, RUNS, Size, in_own_process, probed_steps
from benchmarks.summary import NOT_MEASURED, PLAIN, summarise
from benchmarks.ways import TimedRun, cell, check_agreement
from study.config import CellConfig


@pytest.fixture
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of a suite is forked from this one, which has imported torch and PEFT. It finds
    the machine's peak with a small product."""
    monkeypatch.setattr(commands, "get_context", lambda _: multiprocessing.get_context("fork"))
    monkeypatch.setitem(suites.PEAK_SIDE, "cpu", 256)


@pytest.mark.usefixtures("_forked")
def test_four_ways_are_timed_and_summarised(study_cli: Callable[..., Any], tmp_path: Path) -> None:
    size = ["--model=tiny", "--ranks=2,4", "--steps=2", f"--to={tmp_path}", f"--plots={tmp_path}"]
    ran = study_cli("bench", "sweep", *size)
    assert ran.code == 0, ran.err
    rows = pd.read_parquet(tmp_path / "sweep.parquet")
    assert set(rows["way"]) == {"trainer", "loop", "alone", "packed"}
    steps = rows[rows["variant"] != "set-up"]
    assert steps.groupby(["way", "rank", "scaling"]).size().eq(2).all()
    assert (steps[["seconds", "products"]] > 0).all(axis=None)
    assert steps["adapter_flops"].le(steps["factored_flops"]).all()
    assert "the whole sweep, ours, packed against PEFT, tuned loop" in ran.out
    assert "step / its products" in ran.out
    assert NOT_MEASURED not in ran.out
    assert (tmp_path / "speed.png").exists()
    again = study_cli("bench", "--read", *size)
    assert again.out == ran.out


@pytest.mark.usefixtures("_forked")
def test_ranks_are_added_to_a_table_of_the_same_machine(
    study_cli: Callable[..., Any], tmp_path: Path
) -> None:
    size = ["--model=tiny", "--steps=2", "--add", f"--to={tmp_path}", f"--plots={tmp_path}"]
    for rank in (4, 2):
        ran = study_cli("bench", "folds", "--precision=bf16", f"--ranks={rank}", *size)
        assert ran.code == 0, ran.err
    path = tmp_path / "folds.parquet"
    rows = pd.read_parquet(path)
    assert list(rows["rank"]) == [2] * 6 + [4] * 6
    assert set(rows["way"]) == {"packed", "folded"}
    assert set(rows["precision"]) == {"bf16"}
    assert "- 2 cells: ours, packed " in ran.out
    assert list(earlier_rows(path, Size("tiny", [4, 8], 2))["rank"]) == [2] * 6, "4 is replaced"
    rows.assign(device="another").to_parquet(path)
    ran = study_cli("bench", "folds", *size)
    assert ran.code == 2
    assert "has device 'another', and this run has" in ran.err


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
    assert ran.err.count("\n") == 1


def test_help_lists_the_suites_and_inference(study_cli: Callable[..., Any]) -> None:
    ran = study_cli("bench", "--help")
    listed = {line.split()[0] for line in ran.out.splitlines() if line.startswith("  ")}
    assert {*SUITES, "inference", "scale"} <= listed
    assert set(SUITES) == set(RUNS)


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from study.cli import cli; cli(['bench', '--help'], standalone_mode=False);"
        "print({'torch', 'pandas', 'peft', 'matplotlib'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "set()"


def hungry(config: CellConfig) -> int:
    """The micro-batches of a step. As if memory ran out, the system kills more than 2 rows."""
    if config.train.batch_size > 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return config.train.accumulation


def test_a_step_that_does_not_fit_is_split_into_micro_batches() -> None:
    config = cell("model=tiny", "train.batch_size=8", "train.accumulation=1")
    assert in_own_process(hungry, config) == 4
    assert (config.train.batch_size, config.train.accumulation) == (8, 1)


def test_probed_steps_are_timed_in_turn_and_compared_with_plain_ones() -> None:
    config = cell("model=tiny", "device=cpu", "data.sequence_length=32", "train.batch_size=2")
    timed = list(probed_steps(config, 2))
    assert [name for name, _ in timed] == [*ASKED] * 2
    assert all(seconds > 0 for _, seconds in timed)
    steps = [{"way": "fold", "rank": 8, "tokens": 64, "variant": n, "seconds": s} for n, s in timed]
    runs = [
        {"way": "packed", "rank": 8, "tokens": 64, "variant": variant, "seconds": seconds}
        for variant, seconds in {"off": 2.0, "all sites, every step": 3.0}.items()
    ]
    table = pd.DataFrame(runs + steps).assign(device="this machine", model="tiny")
    text = summarise({"probes": table})
    assert "- all sites, every step: +50.0 % (+50.0 to +50.0)" in text
    seconds = pd.DataFrame(timed, columns=["name", "seconds"]).groupby("name")["seconds"]
    first, second = seconds.nth(0).to_numpy(), seconds.nth(1).to_numpy()
    ratios = dict(zip(ASKED, (first / first[0] + second / second[0]) / 2, strict=True))
    lines = [f"| {name} | {ratios[name]:#.3g} |" for name in ASKED if name != PLAIN]
    assert "\n".join(["| measured | rank 8, 64 tokens |", "| --- | --- |", *lines]) in text
