"""Seeds with unequal ranks are fitted over the same ranks."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from study.analysis import fit_exponents
from study.analysis.fits import common_points, fit_lines

RANKS = np.array([4.0, 16.0, 64.0, 256.0, 1024.0])
X = np.log(RANKS)
GRAD = ("adapter_grad", "norm")


def points(there_SR: np.ndarray) -> np.ndarray:
    """The points used of one group with one column, ``[S, R]``."""
    return common_points(there_SR[None, :, :, None], X)[0, :, :, 0]


def spread(ranks: list[int]) -> float:
    return float(((X[ranks] - X[ranks].mean()) ** 2).sum())


def test_the_block_is_the_best_of_all_blocks() -> None:
    """Against a search over every set of ranks, on random patterns of missing points."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        there = rng.random((rng.integers(2, 7), 5)) < rng.choice([0.4, 0.7, 0.9])
        most = there.sum(axis=1).max()
        values = []
        for count in range(max(1, min(3, most)), 6):
            for chosen in itertools.combinations(range(5), count):
                seeds = there[:, chosen].all(axis=1).sum()
                if seeds:
                    # One seed only if there is no other.
                    values.append((min(seeds, 2), seeds * spread(list(chosen))))
        kept = points(there)
        assert not (kept & ~there).any()
        if values:
            used = kept.any(axis=1)
            ranks = np.flatnonzero(kept.any(axis=0))
            assert (kept[used][:, ranks]).all(), "all seeds have the same ranks"
            value = used.sum() * spread(list(ranks))
            assert (min(used.sum(), 2), value) == pytest.approx(max(values))


@pytest.mark.parametrize(
    ("seeds", "lacking", "used"),
    [
        (5, 1, (4, 5)),  # one seed lacks the highest rank: it is left out
        (5, 2, (3, 5)),
        (5, 4, (5, 4)),  # one seed alone has the highest rank: the rank is left out
        (3, 1, (2, 5)),
    ],
)
def test_who_lacks_the_highest_rank(seeds: int, lacking: int, used: tuple[int, int]) -> None:
    there = np.ones((seeds, 5), bool)
    there[:lacking, -1] = False
    kept = points(there)
    assert (kept.any(axis=1).sum(), kept.any(axis=0).sum()) == used


def bent(rank: np.ndarray) -> np.ndarray:
    """SGD's adapter output under rsLoRA: r^-1 sqrt(r (r + 6))."""
    return np.asarray(0.5 * np.log(1 + 6 / rank))


@pytest.mark.parametrize("missing", [1, 2])
def test_a_study_under_way_has_the_slope_of_the_complete_one(missing: int) -> None:
    """A bent curve; the fifth seed lacks its high ranks. 4000 studies at once."""
    rng = np.random.default_rng(1)
    studies = 4000
    y = bent(RANKS)[:, None] + 0.02 * rng.standard_normal((5, 5, studies))
    under_way = y.copy()
    under_way[4, -missing:] = np.nan
    complete, running = fit_lines(RANKS, y[None]), fit_lines(RANKS, under_way[None])
    truth = np.polyfit(X, bent(RANKS), 1)[0]
    per_seed = [
        np.polyfit(X[: 5 - missing] if s == 4 else X, y[s][: 5 - missing * (s == 4)], 1)[0]
        for s in range(5)
    ]
    biased = np.mean(per_seed, axis=0).mean() - truth
    error = (running.slope[0] - complete.slope[0]).mean()
    print(f"bias of equal weights {biased:.4f}, of the block {error:.5f}")
    assert abs(biased) > 0.005
    assert abs(error) < 4 * running.slope[0].std() / math.sqrt(studies)
    assert (running.rank_max == 1024).all()
    assert (running.seeds == 4).all()


def test_the_table_counts_what_is_left_out(
    study: Callable[..., tuple[pd.DataFrame, pd.DataFrame]],
) -> None:
    def law(cell: dict, layer: int, step: int) -> float:
        lost = cell["seed"] == 4 and cell["rank"] > 64
        return math.nan if lost else math.exp(bent(np.float64(cell["rank"])))

    found = fit_exponents(*study({GRAD: law}, seed=(0, 1, 2, 3, 4)))
    row = found.iloc[0]
    assert (row["seeds"], row["points"], row["dropped"], row["rank_max"]) == (4, 20, 5, 1024)
    assert row["exponent"] == pytest.approx(np.polyfit(X, bent(RANKS), 1)[0], abs=1e-9)
