"""The error that a grid of learning rates makes, by simulation: basins of random offset."""

import math

import numpy as np
import pandas as pd
import pytest

from study.analysis import rate_transfer
from study.analysis.rate_theory import OUTPUT
from study.analysis.rates import bottom, grid_errors, grid_moves

RANKS, H = np.array([4.0, 16.0, 64.0, 256.0]), math.log(10) / 2
STUDIES = 400


def parabola(u):
    return 0.05 * u**2


def lopsided(u):
    """Eight times steeper towards high rates, as losses are near divergence."""
    return 0.05 * np.where(u < 0, u**2, 8 * u**2)


def wall(u):
    """Runs diverge from a rate a little above the best."""
    return np.where(u < 0.3, 0.05 * u**2, np.nan)


def cliff(u):
    """The wall stands right above the best rate."""
    return np.where(u < 0.02, 0.05 * u**2, np.nan)


def simulated(basin, *, seeds, noise, scatter, highest=None):
    """``rates`` of many studies: rules of one setting, each with an exponent of its own.

    ``highest``: the basin of the highest rank, if it is another.
    Each basin lies anywhere beside the grid. ``noise`` is that of a loss, ``scatter`` that of the
    best rate of a seed.
    """
    rng = np.random.default_rng(7)
    x = np.arange(-14, 15) * H
    rows = []
    for study in range(STUDIES):
        exponent, start = rng.uniform(-1, 1), rng.uniform(0, H)
        found, places = [], []
        for seed in range(seeds):
            for rank in RANKS:
                centre = start + exponent * np.log(rank / 32) + scatter * rng.standard_normal()
                own = highest if highest and rank == RANKS[-1] else basin
                loss = own(x - centre) + noise * rng.standard_normal(len(x))
                found.append(bottom(np.exp(x), loss))
                places.append({"seed": seed, "rank": rank})
        of_grid = grid_errors(found), grid_moves(found)
        for best, place, sd, moved in zip(found, places, *of_grid, strict=True):
            rows.append(
                place
                | {"setting": 0, "scaling": "power", "exponent_p": 0.5, "crossover": np.nan}
                | {"optimizer": "adamw", "init": "kaiming", "truth": exponent, "rho": np.nan}
                | {"best_lr": best.lr, "best_loss": best.loss, "edge": best.edge, "tried": len(x)}
                | {"grid_step": best.step, "grid_sd": sd, "moved": moved}
                | {"alpha": float(study), OUTPUT: 0.0}
            )
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("basin", "noise", "scatter", "seeds"),
    [(parabola, 0.002, 0.3, 3), (lopsided, 0.002, 0.1, 5), (wall, 0.0005, 0.02, 3)],
)
def test_intervals_cover_the_true_exponent(basin, noise, scatter, seeds):
    table = rate_transfer(simulated(basin, seeds=seeds, noise=noise, scatter=scatter))
    coverage = table["truth"].between(table["ci_low"], table["ci_high"]).mean()
    print(f"{basin.__name__} noise {noise} scatter {scatter}, {seeds} seeds: {coverage:.3f}")
    # The skew of a lopsided basin varies with the offset of the grid, which widens the interval.
    assert 0.93 <= round(coverage, 2) <= (1.0 if basin is lopsided else 0.97)


@pytest.mark.parametrize("highest", [cliff, lopsided])
def test_another_basin_at_one_rank_alone_is_covered(highest):
    """It moves the best rate of that rank down, in all seeds alike, and not those of the others."""
    how = {"seeds": 3, "noise": 0.001, "scatter": 0.02, "highest": highest}
    table = rate_transfer(simulated(parabola, **how))
    assert table["truth"].between(table["ci_low"], table["ci_high"]).mean() > 0.93
