"""The fits against closed form, against scipy and numpy line by line, and against simulation."""

import numpy as np
import pytest
from scipy import stats

from study.analysis.blocks import common_points
from study.analysis.fits import Strands, fit_lines, fitted, t_critical

RANKS = np.array([4.0, 16.0, 64.0, 256.0, 1024.0])
X = np.log(RANKS)


def frames(seeds, ranks=RANKS, groups=1):
    """Rank per frame and the strands of ``groups`` groups with ``seeds`` seeds of ``ranks``."""
    per_group = seeds * len(ranks)
    group = np.repeat(np.arange(groups), per_group)
    seed = np.tile(np.repeat(np.arange(seeds), len(ranks)), groups)
    return np.tile(ranks, seeds * groups), Strands.of(group, seed)


@pytest.mark.parametrize("seeds", [1, 2, 5])
@pytest.mark.parametrize("weights", [None, "rank"])
def test_an_exact_power_law_comes_back_exactly(seeds, weights):
    rank, strands = frames(seeds)
    slopes = np.array([-1.0, -0.5, 0.0, 0.25, 1.0])
    level = np.array([-20.0, 0.0, 3.0, 7.0, 20.0])
    fit = fit_lines(
        rank, level + np.log(rank)[:, None] * slopes, strands, rank if weights else None
    )
    np.testing.assert_allclose(fit.slope[0], slopes, atol=1e-12)
    np.testing.assert_allclose(
        fit.log_stat_mean[0] - slopes * fit.log_rank_mean[0], level, atol=1e-12
    )
    assert (fit.se_slope < 1e-12).all()
    assert (fit.ranks == 5).all()
    assert (fit.seeds == seeds).all()


def test_one_seed_is_the_textbook_regression():
    rng = np.random.default_rng(0)
    rank, strands = frames(1)
    y = rng.standard_normal((5, 40))
    fit = fit_lines(rank, y, strands)
    for column in range(40):
        line = stats.linregress(X, y[:, column])
        assert fit.slope[0, column] == pytest.approx(line.slope, abs=1e-12)
        assert fit.se_slope[0, column] == pytest.approx(line.stderr, rel=1e-10)
        # At log rank 0 the band's half-width is the intercept's.
        se = np.hypot(
            fit.se_mean[0, column], fit.log_rank_mean[0, column] * fit.se_slope[0, column]
        )
        assert se == pytest.approx(line.intercept_stderr, rel=1e-10)
    assert (fit.df == 3).all()
    assert (fit.cov == 0).all()


def test_weights_are_those_of_weighted_least_squares():
    rng = np.random.default_rng(1)
    rank, strands = frames(1)
    y = rng.standard_normal((5, 10))
    fit = fit_lines(rank, y, strands, rank)
    for column in range(10):
        (slope, _), cov = np.polyfit(X, y[:, column], 1, w=np.sqrt(RANKS), cov=True)
        assert fit.slope[0, column] == pytest.approx(slope, rel=1e-9)
        assert fit.se_slope[0, column] == pytest.approx(np.sqrt(cov[0, 0]), rel=1e-9)


def test_seeds_are_the_sample():
    rng = np.random.default_rng(2)
    rank, strands = frames(5)
    y = rng.standard_normal((25, 20))
    fit = fit_lines(rank, y, strands)
    half_width = t_critical(fit.df) * fit.se_slope
    for column in range(20):
        lines = [stats.linregress(X, y[5 * s : 5 * s + 5, column]) for s in range(5)]
        slopes = [line.slope for line in lines]
        low, high = stats.ttest_1samp(slopes, 0.0).confidence_interval(0.95)
        assert fit.slope[0, column] == pytest.approx(np.mean(slopes), abs=1e-12)
        assert fit.slope[0, column] - half_width[0, column] == pytest.approx(low, abs=1e-10)
        assert fit.slope[0, column] + half_width[0, column] == pytest.approx(high, abs=1e-10)

        row = {
            name: getattr(fit, name)[0, column]
            for name in ("log_rank_mean", "log_stat_mean", "se_mean", "se_slope", "cov")
        }
        row |= {"exponent": fit.slope[0, column], "t_crit": t_critical(4)[()]}
        at = np.array([1.0, 100.0, 1e5])
        values = np.array([line.intercept + line.slope * np.log(at) for line in lines])
        band = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        value, low, high = fitted(row, at)
        np.testing.assert_allclose(np.log(value), values.mean(axis=0), atol=1e-10)
        np.testing.assert_allclose(np.log(low), band.low, atol=1e-10)
        np.testing.assert_allclose(np.log(high), band.high, atol=1e-10)


def test_many_groups_with_holes_agree_with_one_line_at_a_time():
    """Random studies with missing points, against a loop over the seeds of each block."""
    rng = np.random.default_rng(3)
    groups, seeds, columns = 40, 4, 6
    rank, strands = frames(seeds, groups=groups)
    y = rng.standard_normal((len(rank), columns))
    y[rng.random(y.shape) < rng.choice([0.1, 0.5, 0.8], size=(1, columns))] = np.nan
    fit = fit_lines(rank, y, strands)
    kept = common_points(
        np.isfinite(y), np.log(rank), strands.start_S, strands.group_G, np.ones_like(rank)
    )
    cube, block = (each.reshape(groups, seeds, len(RANKS), columns) for each in (y, kept))
    intervals = 0
    for g in range(groups):
        for c in range(columns):
            row = {name: values[g, c] for name, values in vars(fit).items()}
            present = block[g, :, :, c].any(axis=0)
            use = np.flatnonzero(block[g, :, :, c].sum(axis=1) >= 2)
            assert row["seeds"] == len(use)
            if not len(use):
                assert np.isnan(row["slope"])
                continue
            lines = [stats.linregress(X[present], cube[g, s, present, c]) for s in use]
            slopes = [line.slope for line in lines]
            assert row["slope"] == pytest.approx(np.mean(slopes), abs=1e-12)
            centre = X[present].mean()
            levels = [line.intercept + line.slope * centre for line in lines]
            assert row["log_rank_mean"] == pytest.approx(centre)
            assert row["log_stat_mean"] == pytest.approx(np.mean(levels), abs=1e-12)
            assert (row["points"], row["ranks"]) == (len(use) * present.sum(), present.sum())
            assert (row["rank_min"], row["rank_max"]) == (
                RANKS[present].min(),
                RANKS[present].max(),
            )
            if len(use) > 1:
                assert row["se_slope"] == pytest.approx(stats.sem(slopes), rel=1e-9)
                assert row["se_mean"] == pytest.approx(stats.sem(levels), rel=1e-9)
                intervals += 1
            elif present.sum() > 2:
                assert row["se_slope"] == pytest.approx(lines[0].stderr, rel=1e-9)
            else:
                assert np.isnan(row["se_slope"])
                assert row["df"] == 0
    assert intervals > 50


def test_a_seed_with_two_ranks_leaves_where_others_have_three():
    rank, strands = frames(3)
    y = np.log(rank)[:, None] * 0.5
    y[2:5] = np.nan  # the first seed keeps ranks 4 and 16 ...
    y[1] += 10.0  # ... with a wild slope
    fit = fit_lines(rank, y, strands)
    assert fit.seeds[0, 0] == 2
    assert fit.points[0, 0] == 10
    assert fit.slope[0, 0] == pytest.approx(0.5, abs=1e-12)


def test_two_ranks_have_an_interval_over_seeds():
    rng = np.random.default_rng(6)
    rank, strands = frames(3, RANKS[:2])
    y = rng.standard_normal((6, 20))
    fit = fit_lines(rank, y, strands)
    slopes = (y[1::2] - y[::2]) / np.log(4)
    np.testing.assert_allclose(fit.slope[0], slopes.mean(axis=0))
    np.testing.assert_allclose(fit.se_slope[0], stats.sem(slopes, axis=0))
    assert (fit.df == 2).all()
    assert np.isnan(fit.curvature).all()


def test_one_seed_at_two_ranks_has_a_slope_and_no_interval_and_at_one_rank_has_neither():
    rank, strands = frames(1, RANKS[:2])
    y = np.log(rank)[:, None] * np.array([[0.5, 0.5]])
    y[1, 1] = np.nan
    fit = fit_lines(rank, y, strands)
    assert fit.slope[0, 0] == pytest.approx(0.5)
    assert np.isnan(fit.se_slope[0, 0])
    assert (fit.df == 0).all()
    assert np.isnan(fit.slope[0, 1])
    assert np.isnan(t_critical(0))


@pytest.mark.parametrize("weights", [None, "rank"])
def test_curvature_and_the_slopes_at_the_ends(weights):
    """Against numpy's quadratic, seed by seed, and against differences of means."""
    rng = np.random.default_rng(7)
    rank, strands = frames(4)
    y = rng.standard_normal((20, 10))
    fit = fit_lines(rank, y, strands, rank if weights else None)
    w = np.sqrt(RANKS) if weights else None
    cube = y.reshape(4, 5, 10)
    curvature = np.array([np.polyfit(X, cube[s], 2, w=w)[0] for s in range(4)])
    np.testing.assert_allclose(fit.curvature[0], curvature.mean(axis=0), rtol=1e-8)
    np.testing.assert_allclose(fit.se_curvature[0], stats.sem(curvature, axis=0), rtol=1e-8)
    mean = cube.mean(axis=0)
    np.testing.assert_allclose(fit.slope_low[0], (mean[1] - mean[0]) / np.log(4))
    np.testing.assert_allclose(fit.slope_high[0], (mean[4] - mean[3]) / np.log(4))
