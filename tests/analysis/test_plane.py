"""The best pair of alpha and learning rate, and what another alpha costs, on a known surface."""

import math

import numpy as np
import pandas as pd
import pytest

from study.analysis.plane import best_pairs, costs, lowest_losses, runs
from tests.analysis import losses

ALPHAS, RATES = (16.0, 64.0, 256.0, 1024.0), tuple(1e-3 * 2.0 ** np.arange(-5, 4))
BEST_ALPHA, BEST_RATE = 128.0, 9e-4


def surface(cell):
    """A parabola over log alpha and log rate. Its valley falls as alpha^-1/2, and seed 1 has the
    best alpha 1.5 times as high."""
    best = BEST_ALPHA * 1.5 ** cell["seed"]
    alpha, lr = math.log(cell["gamma"] * cell["rank"] / best), math.log(cell["lr"] / BEST_RATE)
    return 2.0 + 0.003 * alpha**2 + 0.05 * (lr + alpha / 2) ** 2


def study(**axes):
    usual = {"rates": RATES, "alphas": ALPHAS, "rules": losses.LORA, "seeds": (0, 1)}
    cells, metrics = losses.runs(surface, **{**usual, **axes})
    rho = 0.6 * (cells["alpha"] / BEST_ALPHA) ** -0.25
    probes = pd.DataFrame({"cell_id": cells["cell_id"], "rho": rho})
    return cells, metrics, probes.assign(step=50, site="A", batch="train", layer="a")


def test_the_best_pair_of_each_rank_with_its_interval():
    pairs = best_pairs(lowest_losses(runs(*study())))
    assert list(pairs["rank"]) == [4, 16, 64, 256]
    for row in pairs.to_dict("records"):
        assert row["alpha"] == pytest.approx(BEST_ALPHA * math.sqrt(1.5))
        assert row["alpha_high"] / row["alpha"] == pytest.approx(row["alpha"] / row["alpha_low"])
        # Two seeds lie log(1.5) apart: Student's t with one degree of freedom is 12.7.
        assert math.log(row["alpha_high"] / row["alpha"]) == pytest.approx(
            12.706 * math.log(1.5) / 2, rel=1e-4
        )
        assert row["lr"] == pytest.approx(BEST_RATE)
        assert row["loss"] == pytest.approx(2.0)
        assert row["rho"] == pytest.approx(0.6 * 1.5**-0.125)


def test_rules_lie_on_one_plane_by_gamma_times_rank():
    """rsLoRA at alpha 16 and rank 256 is LoRA at alpha 256."""
    cells, metrics, probes = study(alphas=(16.0,), ranks=(256,), rules=(("rslora", math.nan),))
    assert set(runs(cells, metrics, probes)["alpha"]) == {256.0}


def test_the_cost_of_an_alpha_is_paired_by_seed():
    found = costs(lowest_losses(runs(*study())), 16.0).set_index("rank")
    gaps = [
        0.003 * (math.log(16 / best) ** 2 - math.log(256 / best) ** 2)
        for best in (BEST_ALPHA, 1.5 * BEST_ALPHA)
    ]
    row = found.loc[64.0]
    assert row["against"] == 256.0
    assert row["seeds"] == 2
    assert row["cost"] == pytest.approx(np.mean(gaps))
    assert row["ci_high"] - row["cost"] == pytest.approx(
        12.706 * abs(gaps[0] - gaps[1]) / 2, rel=1e-4
    )


def test_a_minimum_at_an_edge_gives_no_pair():
    """The best alpha, 128, is above all those tried; the best rate of alpha 16 is too."""
    lowest = lowest_losses(runs(*study(alphas=(4.0, 16.0, 64.0), rates=RATES[:5])))
    assert lowest.loc[lowest["alpha"] == 4.0, "loss"].isna().all()
    assert best_pairs(lowest).empty
