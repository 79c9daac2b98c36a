"""``study rates``: the best learning rates of a study, and the line that trains missing ones."""

import json
import re
from pathlib import Path

import pytest

from study.analysis.grouping import NOT_A_CURVE
from study.cli.rates import ALONE, overrides_of
from study.store import load_cells, load_records

REFERENCE = Path(__file__).parents[2] / "results/reference"
SWEEP = (
    *("train", "-m", "model=tiny", "name=swept", "adapter.rank=4,8", "adapter.scaling=0.5"),
    *("optimizer.lr=8e-3,1.6e-2", "train.steps=2", "train.batch_size=2", "train.eval_every=1"),
    *("data.sequence_length=16", "data.heldout=4", "probes.sites=[adapter_out,A]"),
    *("probes.steps=[1,2]", "probes.stats=[rms,r_sign,rho]", "optimizer.betas=[0.8,0.99]"),
    *("pack.fold=2", "pack.memory_gb=3"),
)


def test_a_search_trains_what_is_missing_until_nothing_is(works, here, monkeypatch):
    """More of two steps is better, so the next rates are above; only the rate is new."""
    works(*SWEEP, f"results_dir={here}", f"plots_dir={here}/plots")
    monkeypatch.chdir("swept")
    folder = "."
    ran = works("rates", folder)
    assert "Best learning rates after 2 steps" in ran.out
    assert ">0.016" in ran.out
    lines = works("rates", folder, "--refine").out.splitlines()
    assert len(lines) == 2, "a line per rank"
    assert all(line.startswith("study train -m ") for line in lines)
    assert all("optimizer.lr=0.032 seed=0" in line for line in lines)
    assert not re.search("pack|null", str(lines)), (
        "of the study's machine; the rule has no crossover"
    )

    ran = works("rates", folder, "--search")
    cells = load_cells(folder)
    rates = [set(cells.loc[cells["rank"] == rank, "lr"]) for rank in (4, 8)]
    assert all({0.032, 0.064} <= own for own in rates)
    most = 2 * len(rates[0] | rates[1]) - 4
    assert f"trained {len(cells) - 4} cells; all of these rates at all ranks: {most}" in ran.err
    same = [name for name in cells if name not in NOT_A_CURVE and name not in ("lr", "rank")]
    assert cells[same].astype(str).nunique().max() == 1
    assert works("rates", folder, "--refine").out == ""


def test_a_search_of_one_rate_starts_around_that_of_the_law(works, tmp_path):
    one = ("adapter.rank=4", "adapter.alpha=16", "optimizer.lr=1e-4", "probes.steps=null")
    works(*SWEEP, *one, f"results_dir={tmp_path}")
    folder = str(tmp_path / "swept")
    [line] = works("rates", folder, "--refine").out.splitlines() or [""]
    first, second = map(float, re.findall(r"optimizer.lr=(\S+)", line)[0].split(","))
    assert second / first == pytest.approx(2, rel=0.02)
    asked = ("--model", "tiny", "--rank", "4", "--rule", "0.5", "--steps", "2", "--json")
    law = json.loads(works("advise", *asked).out)["advice"]["lr"]["value"]
    assert 0.2 < first / law < 1, "at a constant rate, and an eighth of the batch"


def test_a_search_ends_if_the_lowest_rate_stays_best(works, tmp_path, monkeypatch):
    """Far too high rates: a lower one is always better."""
    monkeypatch.setattr("study.cli.rates.FARTHEST", 8.0)
    one = ("adapter.rank=4", "optimizer.lr=1e10,2e10", "train.eval_every=2", "probes.steps=null")
    works(*SWEEP, *one, f"results_dir={tmp_path}")
    ran = works("rates", str(tmp_path / "swept"), "--search")
    assert "--search stops after 8 rounds, or 8 times beyond the first rates: " in ran.err
    lowest = load_cells(str(tmp_path / "swept"))["lr"].min()
    assert 1e10 / 8 <= lowest < 1e10 / 4


def test_a_study_of_one_rate_is_refused(refused):
    assert "has one learning rate: sweep over" in refused("rates", REFERENCE / "quick")


def test_a_setting_that_depends_on_a_swept_one_is_left_to_the_experiment():
    """Its alpha depends on the rule, and its table of them lacks the default rule."""
    name = "rate_rivals_muon"
    configs = (one["config"] for one in load_records(REFERENCE / name))
    of_each = {(one["adapter"]["rank"], one["adapter"]["scaling"]): one for one in configs}
    cells = [overrides_of(one, name, ALONE) for one in of_each.values()]
    assert {tuple(cell) for cell in cells} == {
        (f"experiment={name}", f"adapter.rank={rank}", f"adapter.scaling={rule}")
        for rank in (4, 128)
        for rule in ("0", "rslora")
    }
