"""``study rates``: the best learning rates of a study, and the line that trains missing ones."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import study
from study.analysis.grouping import NOT_A_CURVE

Cli = Callable[..., Any]
SWEEP = (
    *("train", "-m", "model=tiny", "name=swept", "adapter.rank=4,8", "adapter.scaling=0.5"),
    *("optimizer.lr=1e-4,1e-3", "train.steps=2", "train.batch_size=2", "train.eval_every=1"),
    *("data.sequence_length=16", "data.heldout=4", "probes.sites=[adapter_out,A]"),
    *("probes.steps=[1,2]", "probes.stats=[rms,r_sign,rho]", "optimizer.betas=[0.8,0.99]"),
)


def test_the_printed_line_trains_what_is_missing(study_cli: Cli, tmp_path: Path) -> None:
    """More of two steps is better, so the next rates are above; only the rate is new."""
    folders = (f"results_dir={tmp_path}", f"plots_dir={tmp_path}/plots")
    assert study_cli(*SWEEP, *folders).code == 0
    ran = study_cli("rates", str(tmp_path / "swept"))
    assert ran.code == 0, ran.err
    assert "Best learning rates after 2 steps" in ran.out
    assert ">0.001" in ran.out
    ran = study_cli("rates", str(tmp_path / "swept"), "--refine")
    lines = ran.out.splitlines()
    assert len(lines) == 2, "a line per rank"
    assert all("optimizer.lr=0.002,0.004 seed=0" in line for line in lines)
    command, *arguments = shlex.split(lines[0])
    assert command == "study"
    before = study.load(tmp_path / "swept").cells
    assert study_cli(*arguments, folders[1]).code == 0
    cells = study.load(tmp_path / "swept").cells
    new = cells[~cells["cell_id"].isin(before["cell_id"])]
    assert sorted(new["lr"]) == [0.002, 0.004]
    assert set(new["rank"]) == {4}
    same = [name for name in cells if name not in NOT_A_CURVE and name != "lr"]
    assert cells[same].astype(str).nunique().max() == 1
    ran = study_cli("analyze", str(tmp_path / "swept"))
    assert ran.code == 0, ran.err


def test_a_study_of_one_rate_is_refused(study_cli: Cli) -> None:
    ran = study_cli("rates", str(Path(__file__).parents[2] / "results/reference/quick"))
    assert ran.code == 2
    assert "has one learning rate: sweep over some" in ran.err
