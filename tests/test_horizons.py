"""What one rate for all ranks costs, and how the page of a study with several lengths begins."""

import re

import numpy as np
import pandas as pd
import pytest

from research import horizons
from research.blocks import ROOT, study_tables
from study.analysis.answers import answer, rate_table
from study.figures.against_rate import learning_rate_basins


def test_a_loss_between_rates_is_that_of_the_parabola_whose_vertex_is_the_best_rate():
    """PCHIP has no minimum between the rates tried, so a rank would lose nothing by a rate that is
    near its best one."""
    log_lr = np.log([0.001, 0.002, 0.004, 0.008])
    best = log_lr[1] + 0.2
    runs = pd.DataFrame({"lr": np.exp(log_lr), "loss": 2.0 + 0.1 * (log_lr - best) ** 2})
    loss_of = horizons.read_losses(runs)
    assert loss_of(best) == pytest.approx(2.0)
    assert loss_of(log_lr[1]) == pytest.approx(2.0 + 0.1 * 0.2**2)
    assert loss_of(log_lr[3]) == pytest.approx(runs["loss"].iloc[3])


def test_every_rank_is_the_kept_one_and_every_other_rank_loses_something():
    found = horizons.kept("1024").query("rule != 'power'")
    assert sorted(found["kept"].unique()) == [1, 4, 16, 64, 256]
    assert (found["regret"] > 0).all()
    means = found.groupby(["kept", "rule"])["regret"].mean().unstack()
    assert (means.idxmax(axis=1) == "rslora").all()


def test_a_study_of_several_lengths_begins_with_its_longest_runs_and_with_lora():
    tables = study_tables("horizons_small")
    assert "1024 steps" in learning_rate_basins(tables).get_label()
    [sentence] = [line for line in answer(tables) if "the best learning rate" in line]
    assert "1024 steps" in sentence
    names = ("under LoRA", "under rsLoRA", "under power", "under crossover")
    places = [sentence.index(name) for name in names]
    assert places == sorted(places)
    first = rate_table(tables).rows[0]["optimizer, rule"]
    assert first.startswith("AdamW, LoRA")
    assert first.endswith("steps=64")


def test_a_row_that_rests_on_three_rates_and_a_steep_rank_is_marked_in_its_table():
    table = rate_table(study_tables("horizons_small"))
    marked = [row["optimizer, rule"] for row in table.rows if "†" in row["exponent"]]
    assert any("crossover" in name and name.endswith("steps=1024") for name in marked)
    assert len(marked) < len(table.rows) / 2
    assert "†: " in table.notes


def test_the_page_says_that_rates_were_added_in_order_to_narrow_an_interval():
    """README prints the best rates of 256 steps."""
    low, high = re.findall(r"[\d.]+", horizons.before_narrowing().partition("[")[2])
    assert float(low) < 1 < float(high)
    assert (
        "<!-- numbers: before-narrowing -->"
        in (ROOT / "docs/evidence/horizons_long.md").read_text()
    )
    rates = re.findall(r"numbers: (best-rate [^>]+) -->", (ROOT / "README.md").read_text())
    assert rates
    assert not any("rslora 1024" in rate for rate in rates)
