"""Straight lines against log rank, hundreds of thousands at once, each with its standard errors.

Everything is closed form over whole arrays. Letters: ``F`` frames (one cell at one step), ``C``
columns (layers and poolings of layers), ``S`` strands (the frames of one seed), ``G`` groups (the
strands of one curve at one step). Frames are sorted so that strands, and the strands of a group,
are contiguous. NaN stands for a missing point.

The sample unit is the seed: every seed gets its own least-squares line over the ranks it has, and
the interval is Student's t over these lines. Points within a seed share a batch and an
initialisation, so they are not an independent sample. An interval over ranks is given only if there
is one seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import special

from study.vocabulary.thresholds import CONFIDENCE, RANKS_FOR_INTERVAL

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.integer[Any]]
Mask: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Strands:
    """How frames are nested in strands, and strands in groups.

    ``start_S``: the first frame of each strand. ``group_G``: the first strand of each group, both
    ascending. ``strand_F``: the strand of each frame. ``group_S``: the group of each strand.
    """

    start_S: Ints
    group_G: Ints
    strand_F: Ints
    group_S: Ints

    @classmethod
    def of(cls, group_F: npt.ArrayLike, seed_F: npt.ArrayLike) -> "Strands":
        """From labels per frame. Frames must be sorted by group, then by seed."""
        group, seed = np.asarray(group_F), np.asarray(seed_F)
        new_group = np.r_[True, group[1:] != group[:-1]]
        new_strand = new_group | np.r_[True, seed[1:] != seed[:-1]]
        start_S = np.flatnonzero(new_strand)
        opens_group_S = new_group[start_S]
        return cls(
            start_S=start_S,
            group_G=np.flatnonzero(opens_group_S),
            strand_F=np.cumsum(new_strand) - 1,
            group_S=np.cumsum(opens_group_S) - 1,
        )

    @property
    def start_G(self) -> Ints:
        """The first frame of each group."""
        return self.start_S[self.group_G]


@dataclass(frozen=True)
class Lines:
    """A line per group and column, all ``[G, C]``.

    ``log stat = log_stat_mean + slope * (log rank - log_rank_mean)``. ``slope`` is NaN for fewer
    than two ranks. ``se_*`` and ``cov`` are the standard errors of the two coefficients and their
    covariance; they are NaN, and ``df`` is 0, without an interval. ``points`` counts frames used.
    """

    slope: Floats
    log_rank_mean: Floats
    log_stat_mean: Floats
    se_slope: Floats
    se_mean: Floats
    cov: Floats
    df: Ints
    seeds: Ints
    ranks: Ints
    points: Ints
    rank_min: Floats
    rank_max: Floats


def fit_lines(
    rank_F: npt.ArrayLike, y_FC: Floats, strands: Strands, weight_F: npt.ArrayLike | None = None
) -> Lines:
    """Fit ``y`` (log statistic) against log rank, per seed, then over the seeds of each group.

    The line of a seed is (weighted) least squares over the ranks it has, which must be distinct.
    The line of a group is the mean of the lines of its seeds. Its errors are those of this mean, on
    ``seeds - 1`` degrees of freedom. With one seed they are the textbook regression errors, on
    ``ranks - 2``. A seed with fewer than three ranks is left out if another has three: its slope is
    a difference of two points and would dominate the others. Fewer than three ranks in all give a
    slope without an interval.

    ``weight_F`` is proportional to the inverse variance of a frame (None: all equal).
    """
    rank = np.asarray(rank_F, float)
    there_FC = np.isfinite(y_FC)
    with np.errstate(invalid="ignore", divide="ignore"):
        own = _seed_lines(rank, y_FC, there_FC, strands, weight_F)
        used_SC = _seeds_used(own.points, strands)
        mean = _mean_lines(own, used_SC, strands)
    used_FC = there_FC & used_SC[strands.strand_F]
    ranks, lowest, highest = _ranks_used(rank, used_FC, strands.start_G)
    spare = np.where(mean.seeds == 1, mean.points - 2, mean.seeds - 1)
    df = np.where(ranks < RANKS_FOR_INTERVAL, 0, spare).clip(0)
    known = df > 0
    return Lines(
        slope=mean.slope,
        log_rank_mean=mean.x,
        log_stat_mean=mean.y,
        se_slope=np.sqrt(np.where(known, mean.var_slope, np.nan)),
        se_mean=np.sqrt(np.where(known, mean.var_y, np.nan)),
        cov=np.where(known, mean.cov, np.nan),
        df=df,
        seeds=mean.seeds,
        ranks=ranks,
        points=mean.points,
        rank_min=lowest,
        rank_max=highest,
    )


@dataclass(frozen=True)
class _SeedLines:
    """The line of each seed about its own centre ``(x, y)``, all ``[S, C]``.

    ``weight``: the sum of the weights of its points. ``sxx``, ``rss``: the weighted sums of squares
    of x about the centre, and of the residuals.
    """

    points: Ints
    weight: Floats
    x: Floats
    y: Floats
    slope: Floats
    sxx: Floats
    rss: Floats


def _seed_lines(
    rank_F: Floats,
    y_FC: Floats,
    there_FC: Mask,
    strands: Strands,
    weight_F: npt.ArrayLike | None,
) -> _SeedLines:
    """Two passes, first the centre and then the slope: an exact power law is recovered exactly."""
    x_F1 = np.log(rank_F)[:, None]
    y = np.where(there_FC, y_FC, 0.0)
    w_F1 = np.ones_like(x_F1) if weight_F is None else np.asarray(weight_F, float)[:, None]
    w = np.where(there_FC, w_F1, 0.0)
    strand = strands.strand_F

    def sums(values: Floats) -> Floats:
        return np.add.reduceat(values, strands.start_S, axis=0)

    points_SC = np.add.reduceat(there_FC, strands.start_S, axis=0, dtype=np.intp)
    w_SC = sums(w)
    x_SC = sums(w * x_F1) / w_SC
    y_SC = sums(w * y) / w_SC
    dx = x_F1 - x_SC[strand]
    dy = y - y_SC[strand]
    w_dx = w * dx
    sxx_SC = sums(np.where(there_FC, w_dx * dx, 0.0))
    slope_SC = sums(np.where(there_FC, w_dx * dy, 0.0)) / sxx_SC
    rss_SC = sums(np.where(there_FC, w * (dy - slope_SC[strand] * dx) ** 2, 0.0))
    return _SeedLines(points_SC, w_SC, x_SC, y_SC, slope_SC, sxx_SC, rss_SC)


def _seeds_used(points_SC: Ints, strands: Strands) -> Mask:
    """The seeds that a group's line is the mean of: three ranks, if any seed of it has three."""
    most_GC = np.maximum.reduceat(points_SC, strands.group_G, axis=0)
    needed_GC = np.clip(most_GC, 2, RANKS_FOR_INTERVAL)
    return points_SC >= needed_GC[strands.group_S]


@dataclass(frozen=True)
class _MeanLines:
    """The line of each group about the centre ``x`` of all its points, all ``[G, C]``."""

    seeds: Ints
    points: Ints
    x: Floats
    y: Floats
    slope: Floats
    var_slope: Floats
    var_y: Floats
    cov: Floats


def _mean_lines(own: _SeedLines, used_SC: Mask, strands: Strands) -> _MeanLines:
    """The mean over the used seeds about a common centre: seeds may lack different ranks."""
    group = strands.group_S

    def sums(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.add.reduceat(np.where(used_SC, values, 0), strands.group_G, axis=0)

    seeds = sums(used_SC.astype(np.intp))
    points = sums(own.points)
    weight = sums(own.weight)
    x = sums(own.weight * own.x) / weight
    y_SC = own.y + own.slope * (x[group] - own.x)
    slope = sums(own.slope) / seeds
    y = sums(y_SC) / seeds
    d_slope, d_y = own.slope - slope[group], y_SC - y[group]

    one = seeds == 1
    variance = sums(own.rss) / (points - 2)  # of a point; used for one seed only
    of_mean = seeds * (seeds - 1.0)
    return _MeanLines(
        seeds=seeds,
        points=points,
        x=x,
        y=y,
        slope=slope,
        var_slope=np.where(one, variance / sums(own.sxx), sums(d_slope**2) / of_mean),
        var_y=np.where(one, variance / weight, sums(d_y**2) / of_mean),
        cov=np.where(one, 0.0, sums(d_slope * d_y) / of_mean),
    )


def spread_slopes(
    rank_F: npt.ArrayLike, y_FL: Floats, strands: Strands, weight_F: npt.ArrayLike | None = None
) -> Floats:
    """The slope against log rank of the variance of ``y`` over the seeds of a group, ``[G, L]``.

    Weighted as in :func:`fit_lines`. NaN if fewer than two ranks have two seeds. Theory's curves
    are logs of means and data are means of logs. The Jensen gap between them is half this variance,
    or all of it (:func:`study.theory.log_bias`).
    """
    rank = np.asarray(rank_F, float)
    group_F = strands.group_S[strands.strand_F]
    order = np.lexsort((rank, group_F))
    rank, group, y = rank[order], group_F[order], y_FL[order]
    # P: places, a rank of a group.
    start_P = np.flatnonzero(np.r_[True, (rank[1:] != rank[:-1]) | (group[1:] != group[:-1])])
    of_place = np.repeat(np.arange(len(start_P)), np.diff(np.append(start_P, len(rank))))
    there = np.isfinite(y)
    x_P1, group_P = np.log(rank[start_P])[:, None], group[start_P]
    weight = np.ones_like(rank) if weight_F is None else np.asarray(weight_F, float)[order]
    w_P1 = weight[start_P, None]
    start_G = np.flatnonzero(np.r_[True, group_P[1:] != group_P[:-1]])
    with np.errstate(invalid="ignore", divide="ignore"):
        seeds_PL = np.add.reduceat(there, start_P, axis=0, dtype=np.intp)
        mean_PL = np.add.reduceat(np.where(there, y, 0.0), start_P, axis=0) / seeds_PL
        off = np.where(there, y - mean_PL[of_place], 0.0)
        variance_PL = np.add.reduceat(off * off, start_P, axis=0) / (seeds_PL - 1)
        known = seeds_PL > 1
        w_PL = known * w_P1
        w_GL = np.add.reduceat(w_PL, start_G, axis=0)
        x_GL = np.add.reduceat(w_PL * x_P1, start_G, axis=0) / w_GL
        dx = np.where(known, x_P1 - x_GL[group_P], 0.0)
        sxy_GL = np.add.reduceat(w_PL * dx * np.where(known, variance_PL, 0.0), start_G, axis=0)
        sxx_GL = np.add.reduceat(w_PL * dx * dx, start_G, axis=0)
        several = np.add.reduceat(known, start_G, axis=0, dtype=np.intp) > 1
        return np.where(several, sxy_GL / sxx_GL, np.nan)


def _ranks_used(rank_F: Floats, used_FC: Mask, start_G: Ints) -> tuple[Ints, Floats, Floats]:
    """The number of distinct ranks that each group uses, the lowest and the highest, ``[G, C]``.

    The lowest and highest are NaN if there are none.
    """
    shape = (len(start_G), used_FC.shape[1])
    count, lowest = np.zeros(shape, np.intp), np.full(shape, np.nan)
    highest = lowest.copy()
    for rank in np.unique(rank_F):  # ascending; a study has a dozen
        present = np.logical_or.reduceat(used_FC & (rank_F == rank)[:, None], start_G, axis=0)
        count += present
        lowest[present & (count == 1)] = rank
        highest[present] = rank
    return count, lowest, highest


def t_critical(df: npt.ArrayLike) -> Floats:
    """Student's t quantile: the half-width of a two-sided 95 % interval in standard errors.

    NaN where ``df`` is 0.
    """
    df = np.asarray(df, float)
    distinct, where = np.unique(df, return_inverse=True)  # a handful of values in a million rows
    half_width = np.full(distinct.shape, np.nan)
    half_width[distinct > 0] = special.stdtrit(distinct[distinct > 0], (1 + CONFIDENCE) / 2)
    return half_width[where].reshape(df.shape)


def fitted(row: Mapping[str, Any] | Any, rank: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """The line of one row of ``exponents`` at ``rank``, with its pointwise 95 % band.

    Returns ``(value, low, high)`` in the units of the statistic, each with the shape of ``rank``.
    The band is NaN if the row has no interval. ``row`` is a Series, or anything else with
    ``row["log_rank_mean"]``. With several seeds the band is exactly the t-interval over the lines
    of the seeds at that rank; the covariance is stored for this.
    """
    dx = np.log(np.asarray(rank, float)) - row["log_rank_mean"]
    centre = row["log_stat_mean"] + row["exponent"] * dx
    variance = row["se_mean"] ** 2 + 2 * dx * row["cov"] + (dx * row["se_slope"]) ** 2
    half_width = row["t_crit"] * np.sqrt(np.maximum(variance, 0.0))
    return np.exp(centre), np.exp(centre - half_width), np.exp(centre + half_width)
