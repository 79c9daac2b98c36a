"""Expectations about losses and the best alpha, on studies whose losses are known functions."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from study.analysis.expectations import compare
from study.analysis.losses import loss_gaps
from study.analysis.rates import alpha_gaps, alpha_transfer, best_alphas
from study.config.expectations import Expectation

from .losses import LORA, NO_PROBES, runs

ALPHAS = tuple(2.0 ** np.arange(1, 12))
GAP = Expectation(
    what="loss_gap",
    optimizer="adamw",
    rule="lora",
    step="last",
    predicted=-0.3,
    tolerance=0.1,
    source="a claim",
)


def study(loss, **axes):
    """The tables of a study under LoRA with five seeds."""
    cells, metrics = runs(loss, rules=LORA, seeds=range(5), **{"alphas": ALPHAS} | axes)
    none = {name: pd.DataFrame() for name in ("stable", "rates", "distances", "exponents")}
    return SimpleNamespace(cells=cells, metrics=metrics, probes=NO_PROBES, **none)


def basin(cell):
    """The best alpha is ``2.1 sqrt(r) * 1e-3 / lr``; its loss is higher by 0.1 at a higher rate."""
    best = 2.1 * cell["rank"] ** 0.5 * 1e-3 / cell["lr"] * 2 ** (0.2 * (cell["seed"] - 2))
    worse = 0.1 * (cell["lr"] > 1e-3) + 0.01 * cell["seed"]
    return 3 + worse + 0.2 * math.log(cell["alpha"] / best) ** 2


def test_the_exponent_of_the_best_alpha():
    tables = study(basin, ranks=(8, 32, 256), rates=(1e-3, 2.5e-4))
    transfer = alpha_transfer(best_alphas(tables.cells, tables.metrics, tables.probes))
    assert sorted(transfer["lr"]) == [2.5e-4, 1e-3]
    assert transfer["exponent"].to_numpy() == pytest.approx(0.5, abs=1e-6)
    assert transfer["edges"].tolist() == [0, 0]
    assert "predicted_low" not in transfer
    one = replace(GAP, what="best_alpha", step=None, predicted=0.5)
    right, [wrong] = (
        compare([each], tables) for each in (one, replace(one, predicted=0.0, lr=2.5e-4))
    )
    found = sorted((row.curve, row.verdict) for row in right)
    assert found == [("lr=0.00025", "agrees"), ("lr=0.001", "agrees")]
    assert (wrong.verdict, wrong.step) == ("differs", None)


def test_the_gap_between_large_and_small_alpha_is_at_the_best_of_each():
    """Rank 4096 has its best alpha at an edge of the grid, so it has no row."""
    tables = study(basin, ranks=(32, 4096), rates=(1e-3, 2e-3), alphas=ALPHAS[:6])
    [row] = alpha_gaps(best_alphas(tables.cells, tables.metrics, tables.probes)).to_dict("records")
    assert (row["rank"], row["lr_low"], row["lr_high"], row["seeds"]) == (32, 1e-3, 2e-3, 5)
    assert row["gap"] == pytest.approx(-0.1, abs=1e-6)
    one = replace(GAP, what="alpha_gap", step=None, predicted=-0.1, tolerance=0.05)
    assert [row.verdict for row in compare([one], tables)] == ["agrees"]


def test_the_gap_between_ranks_is_seed_by_seed():
    """Seeds differ by more than ranks do, and rank 33 plays no part."""

    def loss(cell):
        learned = 0.3 * (cell["rank"] == 256) * (cell["step"] > 0)
        return float(3 + cell["seed"] - learned - cell["rank"] % 8)

    tables = study(loss, alphas=(16.0,), rates=(1e-3,), steps=(0, 64), ranks=(8, 33, 256))
    gaps = loss_gaps(tables.cells, tables.metrics).set_index("step")
    assert gaps["gap"].to_list() == pytest.approx([0.0, -0.3])
    assert gaps.loc[64, ["rank_min", "rank_max", "seeds"]].tolist() == [8, 256, 5]
    last, first, named = compare(
        [GAP, replace(GAP, step=0), replace(GAP, step=64, alpha=8.0)], tables
    )
    assert (last.verdict, last.step) == ("agrees", 64)
    assert (first.verdict, named.verdict) == ("differs", "not measured")


def test_losses_of_two_settings_are_subtracted_seed_by_seed():
    def loss(cell):
        return float(3 + cell["seed"] + 0.1 * (cell["lr"] > 1e-3) * (cell["rank"] == 8))

    tables = study(loss, alphas=(16.0,), rates=(1e-3, 2e-3), ranks=(8, 256))
    rates = {"of": {"lr": 2e-3}, "against": {"lr": 1e-3}}
    one = replace(GAP, what="loss_difference", batch="heldout", predicted=0.1, **rates)
    ranks = {"of": {"rank": 8, "lr": 2e-3}, "against": {"rank": 256, "lr": 2e-3}}
    found = compare([replace(one, tolerance=0.05), replace(one, **ranks)], tables)
    assert {row.curve: (round(row.measured, 6), row.verdict) for row in found} == {
        "rank=8": (0.1, "agrees"),
        "rank=256": (0.0, "differs"),
        "": (0.1, "agrees"),
    }
