"""Learning-rate transfer with known best rates, and loss comparisons with known causes."""

import math

import numpy as np
import pandas as pd
import pytest

from study.analysis import (
    best_rates,
    compared_losses,
    rank_effects,
    rate_transfer,
    rule_differences,
    task_scores,
    truncated_losses,
    truncation_effects,
)
from study.analysis.fits import mean_interval
from study.analysis.grouping import curve_columns
from study.analysis.rates import bottom

from .losses import LORA, NO_PROBES, POWER, basin, runs

BOTH = (*LORA, ("rslora", math.nan))


@pytest.mark.parametrize(
    ("loss", "lr", "edge"),
    [
        ([3.0, 2.0, 1.0], 1e-2, "highest"),
        ([1.0, 2.0, 3.0], 1e-4, "lowest"),
        # Bounded by a run that diverged: not an edge, and no parabola.
        ([3.0, 1.0, math.nan], 1e-3, ""),
        ([3.0, math.nan, math.nan], 1e-4, "lowest"),
        ([2.0, 2.0, 2.0], 1e-4, "lowest"),
    ],
)
def test_edges_and_divergence(loss, lr, edge):
    found = bottom(np.array([1e-4, 1e-3, 1e-2]), np.array(loss))
    assert found.lr == pytest.approx(lr)
    assert found.edge == edge


def test_the_exponent_of_the_best_rate():
    """Best rates at r^-(1-p)/1.5 with a tilt per seed: mean and interval in closed form. The rates
    tried are uneven."""
    tilt = {0: -0.02, 1: 0.0, 2: 0.03}
    cells, metrics = runs(
        basin(lambda p, seed: -(1 - p) / 1.5 + tilt[seed]),
        rates=tuple(10.0 ** np.delete(np.arange(-8, 2, 0.4), [7, 12, 13, 18])),
    )
    table = rate_transfer(best_rates(cells, metrics, NO_PROBES)).set_index("exponent_p")
    mean, low, high = mean_interval(np.array(list(tilt.values())))
    for p in (0.0, 0.5, 1.0):
        row = table.loc[p]
        assert row["exponent"] == pytest.approx(-(1 - p) / 1.5 + mean)
        bounds = (-(1 - p) / 1.5 + low, -(1 - p) / 1.5 + high)
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(bounds)
        assert (row["seeds"], row["ranks"], row["edges"], row["interval"]) == (3, 4, 0, "seeds")
        assert row["se_grid"] == pytest.approx(0.0, abs=1e-9), "a parabola has no grid error"


def test_each_rank_is_compared_at_the_best_of_its_own_rates():
    """Rank 256 alone was run at 2e-3, its best rate; another rate there lacks a seed."""
    law = basin(lambda p, seed: 0.0, centre=2e-3)
    cells, metrics = runs(law, rates=(1e-3, 2e-3, 2.1e-3, 4e-3), rules=POWER)
    has = cells["lr"].isin([1e-3, 4e-3]) | (cells["rank"] == 256)
    cells = cells[has & ~((cells["lr"] == 2.1e-3) & (cells["seed"] == 0))]
    losses = compared_losses(cells, metrics)
    best = losses[losses["how"] == "best"].groupby("rank")["lr"].unique()
    assert best[256.0].tolist() == [2e-3]
    assert set(best.drop(256.0).explode()) <= {1e-3, 4e-3}


def test_optima_at_an_edge_are_counted_and_left_out():
    law = basin(lambda p, seed: -1.0, centre=1e-2)
    cells, metrics = runs(law, rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2), rules=POWER)
    rates = best_rates(cells, metrics, NO_PROBES)
    # Minima at 2.5e-3, 6.3e-4, 1.6e-4 and 3.9e-5: the last is below all rates tried.
    edges = {4.0: "", 16.0: "", 64.0: "lowest", 256.0: "lowest"}
    assert dict(rates.groupby("rank")["edge"].first()) == edges
    assert set(rates["tried"]) == {5}
    [row] = rate_transfer(rates).to_dict("records")
    assert row["edges"] == 6
    assert row["exponent"] == pytest.approx(-1.0)
    assert row["rank_max"] == 16


def test_the_best_rate_is_that_of_the_mean_over_seeds():
    """Each seed is lucky at a rate of its own. No rate has the mean of their best losses."""
    own = {0: 1e-4, 1: 1e-3, 2: 1e-2}
    lucky = lambda c: 2.0 if c["lr"] == own[c["seed"]] else 2.3 - 0.03 * (c["lr"] == 1e-3)  # noqa: E731
    cells, metrics = runs(lucky, rates=tuple(own.values()), rules=LORA)
    losses = compared_losses(cells, metrics).query("how == 'best'")
    assert set(losses["lr"]) == {1e-3}
    mean = losses.groupby("rank")["loss"].mean()
    assert mean.to_numpy() == pytest.approx((2.27 + 2.0 + 2.27) / 3)
    scores = task_scores(cells, metrics)
    assert np.log(scores["perplexity"].to_numpy()) == pytest.approx(mean.to_numpy())


# Rank, or only the step size.


@pytest.mark.parametrize(("optimizer", "power", "penalty"), [("adamw", 1, 0.25), ("sgd", 2, 0.0)])
def test_the_matched_difference_of_rules_is_what_the_step_does_not_explain(
    optimizer, power, penalty
):
    """The loss falls with the step size, so a larger gamma always helps. LoRA has a penalty."""

    def loss(cell):
        step = cell["lr"] * cell["gamma"] ** power
        own = penalty if cell["scaling"] == "lora" else 0.0
        return 3.0 - 0.1 * math.log(step) + 0.001 * cell["seed"] + own

    cells, metrics = runs(loss, optimizer=optimizer, rules=BOTH)
    differences = rule_differences(compared_losses(cells, metrics))
    fixed, matched = (differences[differences["how"] == how] for how in ("fixed", "matched"))
    # gamma of LoRA is r^-1/2 of rsLoRA's: its loss is higher by 0.05 ln r, or twice that under SGD.
    assert fixed["difference"].to_numpy() == pytest.approx(
        0.05 * power * np.log(fixed["rank"].to_numpy()) + penalty
    )
    assert len(matched) > 4
    assert matched["difference"].to_numpy() == pytest.approx(penalty, abs=1e-9)
    assert (matched["seeds"] == 3).all()


def test_what_a_doubling_of_the_rank_gains():
    """At a fixed rate, 0.02 nats per doubling, varying by seed; at the best rate, 0."""
    own = {0: 0.01, 1: 0.02, 2: 0.03}
    fall = lambda c: 3 - own[c["seed"]] * math.log2(c["rank"])  # noqa: E731
    cells, metrics = runs(fall, rates=(1e-3,), rules=(("rslora", math.nan),))
    [row] = rank_effects(compared_losses(cells, metrics)).to_dict("records")
    expected = mean_interval(np.array([0.01, 0.02, 0.03]))
    assert (row["gain"], row["ci_low"], row["ci_high"]) == pytest.approx(expected)
    law = basin(lambda p, seed: -0.5)
    level, ends = runs(law, rates=tuple(3e-3 * 2.0 ** np.arange(-8, 5)), rules=BOTH[1:])
    effects = rank_effects(compared_losses(level, ends)).set_index("how")
    assert effects.loc["best", "gain"] == pytest.approx(0.0, abs=1e-9)
    assert abs(effects.loc["fixed", "gain"]) > 0.01


def test_task_scores_are_means_over_seeds_at_the_best_rate_of_a_rank():
    """The last loss is 2 + rank / 100 + seed / 10, and 1 higher at the lower learning rate."""
    loss = lambda c: 2 + c["rank"] / 100 + c["seed"] / 10 + (c["lr"] < 1e-3)  # noqa: E731
    axes = {"rates": (1e-4, 1e-3), "rules": BOTH, "ranks": (4, 8), "seeds": (0, 1)}
    cells, metrics = runs(loss, **axes)
    metrics = metrics.assign(exact_match=np.where(metrics["step"] == 0, 0.25, 0.625))
    scores = task_scores(cells, metrics)
    assert len(scores) == 4
    assert not {"rank", "perplexity"} & set(curve_columns(scores)), "settings, to a report"
    assert set(scores["lr"]) == {1e-3}
    assert set(scores["rates"]) == {2}
    row = scores[(scores["scaling"] == "rslora") & (scores["rank"] == 8)].iloc[0]
    expected = np.exp(mean_interval([2.08, 2.18]))
    assert row[["perplexity", "perplexity_low", "perplexity_high"]].tolist() == pytest.approx(
        expected.tolist()
    )
    assert (row["seeds"], row["base_perplexity"]) == (2, pytest.approx(math.exp(9.0)))
    assert (row["base_exact_match"], row["exact_match"]) == (0.25, 0.625)

    one = cells[(cells["seed"] == 0) & (cells["lr"] == 1e-3)].copy()
    one.loc[one["rank"] == 4, "status"] = "running"
    scores = task_scores(one, metrics)
    assert set(scores["rank"]) == {8.0}, "a running cell has no row"
    assert scores[["perplexity_low", "exact_match_high"]].isna().all(axis=None)
    assert task_scores(one.assign(status="diverged"), metrics).empty


def test_what_a_cut_adapter_keeps():
    """The base has loss 3. The run of rank 4 ends at 2.0, that of rank 64 at 1.0, of whose gain
    nine tenths are in 8 directions. The seeds of rank 64 are 0.1 apart."""
    cells, _ = runs(lambda c: 1.0, rates=(1e-3,), rules=LORA, ranks=(4, 64))
    curves = {4.0: {0: 3.0, 1: 2.5, 4: 2.0}, 64.0: {0: 3.0, 4: 1.7, 8: 1.2, 16: 1.05, 64: 1.0}}
    rows = []
    for cell in cells.to_dict("records"):
        for kept, loss in curves[cell["rank"]].items():
            shift = 0.1 * cell["seed"] if kept and cell["rank"] > 4 else 0.0
            row = {"cell_id": cell["cell_id"], "kept": float(kept), "loss": loss + shift}
            rows.append(row | {"share": 1.0})
    effects = truncation_effects(truncated_losses(cells, pd.DataFrame(rows))).set_index("rank")
    low, high = effects.loc[4], effects.loc[64]
    assert (low["gained"], low["needed"]) == (pytest.approx(1.0), 4)
    assert math.isnan(low["beyond"]), "a run is not compared with itself"
    assert (high["gained"], high["needed"]) == (pytest.approx(1.9), 16)
    assert (high["lowest"], high["cut"], high["seeds"]) == (4, pytest.approx(1.8), 3)
    expected = mean_interval([-0.3, -0.2, -0.1])
    assert high[["beyond", "ci_low", "ci_high"]].tolist() == pytest.approx(list(expected))
