"""The fits against closed form, against scipy and numpy line by line, and against simulation."""

import numpy as np
import pytest
from scipy import stats

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
    """Random studies with missing points, against a loop that follows the docstring."""
    rng = np.random.default_rng(3)
    groups, seeds, columns = 40, 4, 6
    rank, strands = frames(seeds, groups=groups)
    y = rng.standard_normal((len(rank), columns))
    y[rng.random(y.shape) < rng.choice([0.1, 0.5, 0.8], size=(1, columns))] = np.nan
    fit = fit_lines(rank, y, strands)
    cube = y.reshape(groups, seeds, len(RANKS), columns)
    intervals = 0
    for g in range(groups):
        for c in range(columns):
            have = [np.isfinite(cube[g, s, :, c]) for s in range(seeds)]
            needed = min(3, max(2, max(mask.sum() for mask in have)))
            use = [s for s in range(seeds) if have[s].sum() >= needed]
            assert fit.seeds[g, c] == len(use)
            if not use:
                assert np.isnan(fit.slope[g, c])
                assert fit.points[g, c] == 0
                continue
            lines = [stats.linregress(X[have[s]], cube[g, s, have[s], c]) for s in use]
            present = np.any([have[s] for s in use], axis=0)
            assert fit.slope[g, c] == pytest.approx(
                np.mean([line.slope for line in lines]), abs=1e-12
            )
            centre = np.concatenate([X[have[s]] for s in use]).mean()
            levels = [line.intercept + line.slope * centre for line in lines]
            assert fit.log_rank_mean[g, c] == pytest.approx(centre)
            assert fit.log_stat_mean[g, c] == pytest.approx(np.mean(levels), abs=1e-12)
            assert fit.points[g, c] == sum(have[s].sum() for s in use)
            assert fit.ranks[g, c] == present.sum()
            assert fit.rank_min[g, c] == RANKS[present].min()
            assert fit.rank_max[g, c] == RANKS[present].max()
            if present.sum() < 3:
                assert np.isnan(fit.se_slope[g, c])
                assert fit.df[g, c] == 0
            elif len(use) == 1:
                assert fit.se_slope[g, c] == pytest.approx(lines[0].stderr, rel=1e-9)
            else:
                assert fit.se_slope[g, c] == pytest.approx(
                    stats.sem([line.slope for line in lines]), rel=1e-9
                )
                assert fit.se_mean[g, c] == pytest.approx(stats.sem(levels), rel=1e-9)
                intervals += 1
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


def test_two_ranks_give_a_slope_without_an_interval_and_one_gives_none():
    rank, strands = frames(3, RANKS[:2])
    y = np.log(rank)[:, None] * np.array([[0.5, 0.5]])
    y[1::2, 1] = np.nan
    fit = fit_lines(rank, y, strands)
    assert fit.slope[0, 0] == pytest.approx(0.5)
    assert np.isnan(fit.se_slope[0, 0])
    assert fit.df[0, 0] == 0
    assert np.isnan(fit.slope[0, 1])
    assert np.isnan(t_critical(0))


@pytest.mark.parametrize(("seeds", "weights"), [(5, None), (5, "rank"), (1, None), (2, None)])
def test_the_interval_covers_19_times_in_20(seeds, weights):
    """Independent noise per cell and a common one per seed (its batch), 20,000 studies at once."""
    rng = np.random.default_rng(4)
    studies = 20_000
    rank, strands = frames(seeds)
    batch = rng.standard_normal((seeds, studies))[strands.strand_F]
    y = -0.5 * np.log(rank)[:, None] + batch + 0.1 * rng.standard_normal((len(rank), studies))
    fit = fit_lines(rank, y, strands, rank if weights else None)
    covered = (np.abs(fit.slope + 0.5) < t_critical(fit.df) * fit.se_slope).mean()
    assert covered == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / studies))


def test_the_interval_over_seeds_covers_where_seeds_differ_in_slope():
    """Each batch has its own slope: an interval over pooled points would be too narrow."""
    rng = np.random.default_rng(5)
    studies = 20_000
    rank, strands = frames(5)
    own = 0.05 * rng.standard_normal((5, studies))[strands.strand_F]
    y = (own - 0.5) * np.log(rank)[:, None] + 0.01 * rng.standard_normal((len(rank), studies))
    fit = fit_lines(rank, y, strands)
    covered = (np.abs(fit.slope + 0.5) < t_critical(fit.df) * fit.se_slope).mean()
    assert covered == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / studies))
