"""The fits against closed form, against scipy and numpy line by line, and against simulation.

Cells that are missing are fitted.
"""

import numpy as np
import pytest
from scipy import stats

from study.analysis.fits import fit_lines, fitted, t_critical

RANKS = np.array([4.0, 16.0, 64.0, 256.0, 1024.0])
X = np.log(RANKS)


def test_one_seed_is_the_textbook_regression():
    rng = np.random.default_rng(0)
    y = rng.standard_normal((5, 40))
    fit = fit_lines(RANKS, y[None, None])
    for column in range(40):
        line = stats.linregress(X, y[:, column])
        assert fit["slope"][0, column] == pytest.approx(line.slope, abs=1e-12)
        assert fit["se_slope"][0, column] == pytest.approx(line.stderr, rel=1e-10)
        # At log rank 0 the band's half-width is the intercept's.
        se = np.hypot(
            fit["se_mean"][0, column], fit["log_rank_mean"][0, column] * fit["se_slope"][0, column]
        )
        assert se == pytest.approx(line.intercept_stderr, rel=1e-10)
    assert (fit["df"] == 3).all()
    assert (fit["cov"] == 0).all()


def test_seeds_are_the_sample():
    rng = np.random.default_rng(2)
    y = rng.standard_normal((5, 5, 20))
    fit = fit_lines(RANKS, y[None])
    half_width = t_critical(fit["df"]) * fit["se_slope"]
    for column in range(20):
        lines = [stats.linregress(X, own[:, column]) for own in y]
        slopes = [line.slope for line in lines]
        low, high = stats.ttest_1samp(slopes, 0.0).confidence_interval(0.95)
        assert fit["slope"][0, column] == pytest.approx(np.mean(slopes), abs=1e-12)
        assert fit["slope"][0, column] - half_width[0, column] == pytest.approx(low, abs=1e-10)
        assert fit["slope"][0, column] + half_width[0, column] == pytest.approx(high, abs=1e-10)

        row = {
            name: fit[name][0, column]
            for name in ("log_rank_mean", "log_stat_mean", "se_mean", "se_slope", "cov")
        }
        row |= {"exponent": fit["slope"][0, column], "t_crit": t_critical(4)[()]}
        at = np.array([1.0, 100.0, 1e5])
        values = np.array([line.intercept + line.slope * np.log(at) for line in lines])
        band = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        value, low, high = fitted(row, at)
        np.testing.assert_allclose(np.log(value), values.mean(axis=0), atol=1e-10)
        np.testing.assert_allclose(np.log(low), band.low, atol=1e-10)
        np.testing.assert_allclose(np.log(high), band.high, atol=1e-10)


def test_one_seed_at_two_ranks_has_a_slope_and_no_interval_and_at_one_rank_has_neither():
    y = X[:2, None] * np.array([[0.5, 0.5]])
    y[1, 1] = np.nan
    fit = fit_lines(RANKS[:2], y[None, None])
    assert fit["slope"][0, 0] == pytest.approx(0.5)
    assert np.isnan(fit["se_slope"][0, 0])
    assert (fit["df"] == 0).all()
    assert np.isnan(fit["slope"][0, 1])
    assert np.isnan(t_critical(0))


def test_curvature_and_the_slopes_at_the_ends():
    """Against numpy's quadratic, seed by seed, and against differences of means."""
    rng = np.random.default_rng(7)
    y = rng.standard_normal((4, 5, 10))
    fit = fit_lines(RANKS, y[None])
    curvature = np.array([np.polyfit(X, own, 2)[0] for own in y])
    np.testing.assert_allclose(fit["curvature"][0], curvature.mean(axis=0), rtol=1e-8)
    np.testing.assert_allclose(fit["se_curvature"][0], stats.sem(curvature, axis=0), rtol=1e-8)
    mean = y.mean(axis=0)
    np.testing.assert_allclose(fit["slope_low"][0], (mean[1] - mean[0]) / np.log(4))
    np.testing.assert_allclose(fit["slope_high"][0], (mean[4] - mean[3]) / np.log(4))


def test_missing_cells_do_not_change_the_lines_of_an_additive_curve():
    """A bent curve and a line for each seed about it: the model is exact, whatever is missing."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        seeds = rng.integers(4, 7)
        tilts = rng.standard_normal((seeds, 1))
        y = rng.standard_normal(5) + rng.standard_normal((seeds, 1)) + tilts * X
        lacking = y.copy()
        lacking[0, rng.integers(5)] = lacking[1, rng.integers(5)] = np.nan
        whole, found = (fit_lines(RANKS, each[None, :, :, None]) for each in (y, lacking))
        for name in ("slope", "se_slope", "log_stat_mean", "se_mean", "slope_low", "slope_high"):
            np.testing.assert_allclose(found[name], whole[name], atol=1e-9)
        assert [found[name] for name in ("points", "seeds", "ranks")] == [5 * seeds - 2, seeds, 5]


@pytest.mark.parametrize(
    ("there", "seeds", "ranks"),
    [
        ([31, 31, 31, 31, 1], 4, 5),  # a seed with one rank is left out
        ([31, 31, 31, 31, 3], 4, 5),  # and one with fewer than half of the ranks
        ([31, 31, 31, 31, 7], 5, 5),
        ([31, 15, 15, 15, 15], 5, 4),  # a rank that one of five seeds has is left out
        ([31, 31, 31, 15, 15], 5, 5),
        ([31, 0, 0], 1, 5),
        ([1, 1, 1], 0, 0),  # no line
    ],
    ids=str,
)
def test_which_seeds_and_ranks_count(there, seeds, ranks):
    """``there``: by seed, the sum of 2^n over the ranks n that it has."""
    y = np.random.default_rng(1).standard_normal((len(there), 5))
    y[[[not has >> n & 1 for n in range(5)] for has in there]] = np.nan
    fit = fit_lines(RANKS, y[None, :, :, None])
    if seeds:
        assert (fit["seeds"], fit["ranks"]) == (seeds, ranks)
    else:
        assert np.isnan(fit["slope"]).all()
