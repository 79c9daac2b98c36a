"""Straight lines against log rank, hundreds of thousands at once, each with its standard errors.

Everything is closed form over whole arrays. Letters: ``G`` groups (a curve at one step on one
batch), ``S`` seeds, ``R`` ranks, ``C`` columns (layers and poolings of layers). NaN is a missing
point. docs/measured.md explains the sample unit, and how missing cells are fitted.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from study.vocabulary.thresholds import CONFIDENCE, RANKS_FOR_INTERVAL, ROUNDING

SEEDS_FOR_SKEW = 8
"""The fewest seeds for a test that slopes are skewed."""

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.integer[Any]]
Mask: TypeAlias = npt.NDArray[np.bool_]


def complete(y_GSRC: Floats, x_R: Floats) -> tuple[Floats, Mask]:
    """``y`` with its missing cells fitted (docs/measured.md), and which cells are measured and
    count."""
    there_GSRC = np.isfinite(y_GSRC)
    ranks_GSC = there_GSRC.sum(axis=2)
    # All seeds have all ranks, or none.
    uneven_GC = ((ranks_GSC > 0) & (ranks_GSC < there_GSRC.any(axis=1).sum(axis=1)[:, None])).any(1)
    if not uneven_GC.any():
        return y_GSRC, there_GSRC
    y_GSRC, there_GSRC = y_GSRC.copy(), there_GSRC.copy()
    found: dict[bytes, tuple[Mask, Mask, Floats]] = {}  # many columns lack the same cells
    for group, column in np.argwhere(uneven_GC):
        y_SR, there_SR = y_GSRC[group, :, :, column], there_GSRC[group, :, :, column]
        pattern = there_SR.tobytes()
        if pattern not in found:
            found[pattern] = _model(there_SR, x_R)
        used_SR, block_SR, fit = found[pattern]
        fitted_SR = np.where(block_SR, (fit @ y_SR[used_SR]).reshape(y_SR.shape), np.nan)
        y_GSRC[group, :, :, column] = np.where(used_SR, y_SR, fitted_SR)
        there_GSRC[group, :, :, column] = used_SR
    return y_GSRC, there_GSRC


def _model(there_SR: Mask, x_R: Floats) -> tuple[Mask, Mask, Floats]:
    """The cells that count, those of their seeds and ranks, and the matrix from the values of the
    first to the fitted values of all cells."""
    seed_S, rank_R = (np.asarray(there_SR.any(axis=axis), bool) for axis in (1, 0))
    while True:
        has_S = (there_SR & rank_R).sum(axis=1)
        enough_S = np.asarray(seed_S & (has_S >= max(2, rank_R.sum() / 2)), bool)
        if not enough_S.any():  # no two ranks: the cells as they are
            enough_S = seed_S
        half_R = rank_R & (2 * (there_SR & enough_S[:, None]).sum(axis=0) >= enough_S.sum())
        if (enough_S == seed_S).all() and (half_R == rank_R).all():
            break
        seed_S, rank_R = enough_S, half_R
    block_SR = seed_S[:, None] & rank_R
    used_SR = there_SR & block_SR
    seed, rank = (index.ravel() for index in np.indices(there_SR.shape))
    x = (x_R - x_R.mean())[rank]
    by_seed = np.eye(len(there_SR))[seed]
    terms = np.hstack([np.eye(len(x_R))[rank], by_seed, by_seed * x[:, None]])
    return used_SR, block_SR, terms @ np.linalg.pinv(terms[used_SR.ravel()])


Lines: TypeAlias = dict[str, npt.NDArray[Any]]
"""A line per group and column, all ``[G, C]``, by name:

- ``log stat = log_stat_mean + slope * (log rank - log_rank_mean)``, natural logarithms; ``slope``
  is NaN for fewer than two ranks;
- ``se_slope``, ``se_mean``, ``cov``: the standard errors of the two coefficients and their
  covariance; NaN, with a ``df`` of 0, without an interval;
- ``seeds``, ``ranks``, ``points``, ``rank_min``, ``rank_max``: those of the group;
- ``curvature``: the coefficient of ``(log rank)^2`` in a quadratic fit; NaN for fewer than three
  ranks. ``se_curvature``, its standard error over seeds, is NaN with one seed or too many missing
  cells;
- ``slope_low``, ``slope_high``: between the two lowest and between the two highest ranks;
- ``p_skew``: of the test that the slopes of seeds are not skewed (D'Agostino 1970); NaN for fewer
  than :data:`SEEDS_FOR_SKEW` seeds.
"""


def fit_lines(rank_R: npt.ArrayLike, y_GSRC: Floats) -> Lines:
    """Fit ``y`` (log statistic) against log rank, per seed, then over the seeds of each group.

    ``rank_R`` ascends. The line of a seed is least squares over its ranks. That of a group is the
    mean of the lines of its seeds, with the errors of this mean, on ``seeds - 1`` degrees of
    freedom. With one seed they are the textbook regression errors, on ``ranks - 2``; one seed with
    two ranks has a slope without errors. Missing cells are fitted (:func:`complete`).
    """
    rank = np.asarray(rank_R, float)
    y_GSRC, measured_GSRC = complete(y_GSRC, np.log(rank))
    there_GSRC = np.isfinite(y_GSRC)
    with np.errstate(invalid="ignore", divide="ignore"):
        own = _seed_lines(np.log(rank), y_GSRC, there_GSRC)
        found = _mean_lines(own) | _ends(rank, y_GSRC, there_GSRC)
        found["p_skew"] = np.full(found["slope"].shape, np.nan)
        if y_GSRC.shape[1] >= SEEDS_FOR_SKEW:
            differ = own["slope"].std(axis=1, keepdims=True) > ROUNDING
            slopes = np.where(differ, own["slope"], np.nan)
            found["p_skew"] = stats.skewtest(slopes, axis=1).pvalue
        # A fitted cell has no residual, so bends of seeds scatter less than with all cells.
        all_GC = (found["seeds"] - 1) * (found["ranks"] - 2.0)
        left_GC = all_GC - (there_GSRC & ~measured_GSRC).sum(axis=(1, 2))
        left_GC = np.where(left_GC < found["seeds"] - 1, np.nan, left_GC)
        found["se_curvature"] = found["se_curvature"] * np.sqrt(all_GC / left_GC)
    found["points"] = measured_GSRC.sum(axis=(1, 2))
    shaped = np.broadcast_arrays(*found.values())
    found = dict(zip(found, shaped, strict=True))
    seeds, points, ranks = found["seeds"], found["points"], found["ranks"]
    df = np.where(ranks < 2, 0, np.where(seeds == 1, points - 2, seeds - 1)).clip(0)
    for name in ("se_slope", "se_mean", "cov"):
        found[name] = np.where(df > 0, found[name], np.nan)
    for name in ("curvature", "se_curvature"):
        found[name] = np.where(ranks >= RANKS_FOR_INTERVAL, found[name], np.nan)
    return found | {"df": df}


def _seed_lines(x_R: Floats, y_GSRC: Floats, there_GSRC: Mask) -> Lines:
    """The line of each seed about its own centre, ``[G, S, C]`` or ``[G, S, 1]``. ``q``: x^2 less
    its projection on 1 and x."""
    there = there_GSRC
    if (there == there[..., :1]).all():  # all columns lack the same points: one x for all
        there = there[..., :1]
    x = x_R[:, None]
    y = np.where(there, y_GSRC, 0.0)
    points = there.sum(axis=2)
    w = there.astype(float)
    x_mean = (w * x).sum(axis=2) / points
    y_mean = y.sum(axis=2) / points
    dx = w * (x - x_mean[:, :, None])
    dy = w * (y - y_mean[:, :, None])
    sxx = (dx * dx).sum(axis=2)
    slope = (dx * dy).sum(axis=2) / sxx
    q = w * (
        dx * (dx - ((dx * dx * dx).sum(axis=2) / sxx)[:, :, None]) - (sxx / points)[:, :, None]
    )
    curvature = (q * dy).sum(axis=2) / (q * q).sum(axis=2)
    dy -= slope[:, :, None] * dx
    found = {"points": points, "x": x_mean, "y": y_mean, "slope": slope, "sxx": sxx}
    return found | {"rss": (dy * dy).sum(axis=2), "curvature": curvature}


def _mean_lines(own: Lines) -> Lines:
    """The mean over the seeds of each group. They have the same ranks, so the same centre."""
    used = own["points"] >= 2

    def sums(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.where(used, values, 0).sum(axis=1)

    seeds, points = used.sum(axis=1), sums(own["points"])
    slope, y, curvature = (sums(own[name]) / seeds for name in ("slope", "y", "curvature"))
    off_slope, off_y = own["slope"] - slope[:, None], own["y"] - y[:, None]
    one = seeds == 1
    variance = sums(own["rss"]) / (points - 2)  # of a point; used for one seed only
    of_mean = seeds * (seeds - 1.0)
    var_slope = np.where(one, variance / sums(own["sxx"]), sums(off_slope**2) / of_mean)
    return {
        "seeds": seeds,
        "points": points,
        "log_rank_mean": sums(own["points"] * own["x"]) / points,
        "log_stat_mean": y,
        "slope": slope,
        "se_slope": np.sqrt(var_slope),
        "se_mean": np.sqrt(np.where(one, variance / points, sums(off_y**2) / of_mean)),
        "cov": np.where(one, 0.0, sums(off_slope * off_y) / of_mean),
        "curvature": curvature,
        "se_curvature": np.sqrt(sums((own["curvature"] - curvature[:, None]) ** 2) / of_mean),
    }


def _ends(rank_R: Floats, y_GSRC: Floats, there_GSRC: Mask) -> Lines:
    """The number of ranks of each group, the lowest and the highest, and the slope of the mean over
    seeds between the two ranks at each end."""
    seeds_GRC = there_GSRC.sum(axis=1)
    mean_GRC = np.where(there_GSRC, y_GSRC, 0.0).sum(axis=1) / seeds_GRC
    order_GRC = np.argsort(seeds_GRC == 0, axis=1, kind="stable")  # the group's own ranks first
    ranks = (seeds_GRC > 0).sum(axis=1)

    def at(place: Ints) -> tuple[Floats, Floats]:
        """The rank with this place among those of the group, and the mean there."""
        within = (place >= 0) & (place < ranks)
        here = np.take_along_axis(order_GRC, np.where(within, place, 0)[:, None], axis=1)
        mean = np.take_along_axis(mean_GRC, here, axis=1)[:, 0]
        return np.where(within, rank_R[here[:, 0]], np.nan), np.where(within, mean, np.nan)

    (lowest, low), (second, above), (before, below), (highest, high) = (
        at(place) for place in (0 * ranks, 0 * ranks + 1, ranks - 2, ranks - 1)
    )
    return {
        "ranks": ranks,
        "rank_min": lowest,
        "rank_max": highest,
        "slope_low": (above - low) / np.log(second / lowest),
        "slope_high": (high - below) / np.log(highest / before),
    }


def t_critical(df: npt.ArrayLike) -> Floats:
    """Student's t quantile, half of a 95 % interval in standard errors; NaN where ``df`` is 0."""
    df = np.asarray(df, float)
    distinct, where = np.unique(df, return_inverse=True)  # a handful of values in a million rows
    half_width = np.full(distinct.shape, np.nan)
    half_width[distinct > 0] = special.stdtrit(distinct[distinct > 0], (1 + CONFIDENCE) / 2)
    return half_width[where].reshape(df.shape)


def fitted(row: Mapping[str, Any] | Any, rank: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """The line of one row of ``exponents`` at ``rank``: ``(value, low, high)`` with its pointwise
    95 % band."""
    dx = np.log(np.asarray(rank, float)) - row["log_rank_mean"]
    centre = row["log_stat_mean"] + row["exponent"] * dx
    variance = row["se_mean"] ** 2 + 2 * dx * row["cov"] + (dx * row["se_slope"]) ** 2
    half_width = row["t_crit"] * np.sqrt(np.maximum(variance, 0.0))
    return np.exp(centre), np.exp(centre - half_width), np.exp(centre + half_width)


def mean_interval(values: npt.ArrayLike) -> tuple[float, float, float]:
    """The mean of a sample with its 95 % t-interval; bounds are NaN for one, all for none."""
    sample = np.asarray(values, float)
    if sample.size == 0:
        return np.nan, np.nan, np.nan
    mean = float(sample.mean())
    if sample.size == 1:
        return mean, np.nan, np.nan
    half_width = float(t_critical(sample.size - 1) * sample.std(ddof=1) / np.sqrt(sample.size))
    return mean, mean - half_width, mean + half_width


def interval_columns(name: str, values: npt.ArrayLike) -> dict[str, float]:
    """:func:`mean_interval` as the columns ``name``, ``ci_low`` and ``ci_high`` of a table."""
    return dict(zip((name, "ci_low", "ci_high"), mean_interval(values), strict=True))
