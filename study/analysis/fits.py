"""Straight lines against log rank, hundreds of thousands at once, each with its standard errors.

Everything is closed form over whole arrays. Letters: ``F`` frames (one cell at one step), ``C``
columns (layers and poolings of layers), ``S`` strands (the frames of one seed), ``G`` groups (the
strands of one curve at one step). Frames are sorted so that strands, and the strands of a group,
are contiguous. NaN stands for a missing point.

The sample unit is the seed: every seed gets its own least-squares line, all of them over the same
ranks (:mod:`~study.analysis.blocks`), and the interval is Student's t over these lines. Points
within a seed share a batch and an initialisation, so they are not an independent sample. With one
seed the errors are those of the regression over ranks. They say how straight the line is, and do
not cover other seeds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import special

from study.analysis.blocks import common_points
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

    ``curvature`` is the coefficient of ``(log rank)^2`` in the quadratic fit, with its standard
    error over seeds (NaN with one seed); NaN for fewer than three ranks. ``slope_low`` and
    ``slope_high`` are the slopes between the two lowest and between the two highest ranks.
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
    curvature: Floats
    se_curvature: Floats
    slope_low: Floats
    slope_high: Floats


def fit_lines(
    rank_F: npt.ArrayLike, y_FC: Floats, strands: Strands, weight_F: npt.ArrayLike | None = None
) -> Lines:
    """Fit ``y`` (log statistic) against log rank, per seed, then over the seeds of each group.

    The line of a seed is (weighted) least squares over its ranks, which must be distinct. The line
    of a group is the mean of the lines of its seeds. Its errors are those of this mean, on
    ``seeds - 1`` degrees of freedom. With one seed they are the textbook regression errors, on
    ``ranks - 2``; one seed with two ranks has a slope without errors.

    All seeds of a group are fitted over the same ranks. If their ranks differ, some seeds or some
    ranks are left out, as :mod:`~study.analysis.blocks` says. A seed with fewer than three ranks is
    left out if another has three: its slope is a difference of two points and would dominate the
    others.

    ``weight_F`` is proportional to the inverse variance of a frame (None: all equal).
    """
    rank = np.asarray(rank_F, float)
    x_F = np.log(rank)
    w_F = np.ones_like(x_F) if weight_F is None else np.asarray(weight_F, float)
    there_FC = common_points(np.isfinite(y_FC), x_F, strands.start_S, strands.group_G, w_F)
    with np.errstate(invalid="ignore", divide="ignore"):
        own = _seed_lines(x_F, y_FC, there_FC, strands, w_F)
        mean = _mean_lines(own, strands)
        ends = _ends(rank, y_FC, there_FC, strands.start_G)
    df = np.where(mean.seeds == 1, mean.points - 2, mean.seeds - 1)
    df = np.where(ends.ranks < 2, 0, df).clip(0)
    known, bends = df > 0, ends.ranks >= RANKS_FOR_INTERVAL
    return Lines(
        slope=mean.slope,
        log_rank_mean=mean.x,
        log_stat_mean=mean.y,
        se_slope=np.sqrt(np.where(known, mean.var_slope, np.nan)),
        se_mean=np.sqrt(np.where(known, mean.var_y, np.nan)),
        cov=np.where(known, mean.cov, np.nan),
        df=df,
        seeds=mean.seeds,
        ranks=ends.ranks,
        points=mean.points,
        rank_min=ends.lowest,
        rank_max=ends.highest,
        curvature=np.where(bends, mean.curvature, np.nan),
        se_curvature=np.sqrt(np.where(bends, mean.var_curvature, np.nan)),
        slope_low=ends.slope_low,
        slope_high=ends.slope_high,
    )


@dataclass(frozen=True)
class _SeedLines:
    """The line of each seed about its own centre ``(x, y)``, all ``[S, C]`` or ``[S, 1]``.

    ``weight``: the sum of the weights of its points. ``sxx``, ``rss``: the weighted sums of squares
    of x about the centre, and of the residuals. ``curvature``: of the quadratic.
    """

    points: Ints
    weight: Floats
    x: Floats
    y: Floats
    slope: Floats
    sxx: Floats
    rss: Floats
    curvature: Floats


def _seed_lines(
    x_F: Floats, y_FC: Floats, there_FC: Mask, strands: Strands, w_F: Floats
) -> _SeedLines:
    """Two passes, first the centre and then the slope: an exact power law is recovered exactly.

    The quadratic is fitted through ``q``, which is ``x^2`` less its projection on 1 and x.
    """
    if (there_FC == there_FC[:, :1]).all():  # all columns lack the same frames: one x for all
        there_FC = there_FC[:, :1]
    x = x_F[:, None]
    y = np.where(there_FC, y_FC, 0.0)
    w = np.where(there_FC, w_F[:, None], 0.0)
    strand = strands.strand_F

    def sums(values: Floats) -> Floats:
        return np.add.reduceat(values, strands.start_S, axis=0)

    points_SC = np.add.reduceat(there_FC, strands.start_S, axis=0, dtype=np.intp)
    w_SC = sums(w)
    x_SC = sums(w * x) / w_SC
    y_SC = sums(w * y) / w_SC
    dx = x - x_SC[strand]
    dy = y - y_SC[strand]
    w_dx = w * dx
    sxx_SC = sums(w_dx * dx)
    slope_SC = sums(w_dx * dy) / sxx_SC
    q = dx * (dx - (sums(w_dx * dx * dx) / sxx_SC)[strand]) - (sxx_SC / w_SC)[strand]
    w_q = w * q
    curvature_SC = sums(w_q * dy) / sums(w_q * q)
    dy -= slope_SC[strand] * dx
    rss_SC = sums(w * dy * dy)
    return _SeedLines(points_SC, w_SC, x_SC, y_SC, slope_SC, sxx_SC, rss_SC, curvature_SC)


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
    curvature: Floats
    var_curvature: Floats


def _mean_lines(own: _SeedLines, strands: Strands) -> _MeanLines:
    """The mean over the seeds of each group. They have the same ranks, so the same centre."""
    group, shape = strands.group_S, (len(strands.group_G), own.y.shape[1])
    used = own.points >= 2

    def sums(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        total = np.add.reduceat(np.where(used, values, 0), strands.group_G, axis=0)
        return np.broadcast_to(total, shape)

    seeds = sums(used.astype(np.intp))
    points = sums(own.points)
    weight = sums(own.weight)
    slope, y, curvature = (sums(each) / seeds for each in (own.slope, own.y, own.curvature))
    off_slope, off_y = own.slope - slope[group], own.y - y[group]

    one = seeds == 1
    variance = sums(own.rss) / (points - 2)  # of a point; used for one seed only
    of_mean = seeds * (seeds - 1.0)
    return _MeanLines(
        seeds=seeds,
        points=points,
        x=sums(own.weight * own.x) / weight,
        y=y,
        slope=slope,
        var_slope=np.where(one, variance / sums(own.sxx), sums(off_slope**2) / of_mean),
        var_y=np.where(one, variance / weight, sums(off_y**2) / of_mean),
        cov=np.where(one, 0.0, sums(off_slope * off_y) / of_mean),
        curvature=curvature,
        var_curvature=sums((own.curvature - curvature[group]) ** 2) / of_mean,
    )


@dataclass(frozen=True)
class _Ends:
    """The number of ranks of each group, the lowest and the highest, and the slopes at the ends.

    All ``[G, C]``. A slope is that of the mean over seeds, between two neighbouring ranks. NaN
    where there are too few ranks.
    """

    ranks: Ints
    lowest: Floats
    highest: Floats
    slope_low: Floats
    slope_high: Floats


def _ends(rank_F: Floats, y_FC: Floats, there_FC: Mask, start_G: Ints) -> _Ends:
    shape = (len(start_G), y_FC.shape[1])
    group_F = np.repeat(np.arange(len(start_G)), np.diff(np.append(start_G, len(rank_F))))
    count = np.zeros(shape, np.intp)
    lowest, highest, low, high, last = (np.full(shape, np.nan) for _ in range(5))
    for rank in np.unique(rank_F):  # ascending; a study has a dozen
        frames = np.flatnonzero(rank_F == rank)
        first = np.flatnonzero(np.r_[True, np.diff(group_F[frames]) > 0])
        at, there = group_F[frames[first]], there_FC[frames]
        seeds = np.add.reduceat(there, first, axis=0, dtype=np.intp)
        mean = np.add.reduceat(np.where(there, y_FC[frames], 0.0), first, axis=0) / seeds
        slope, here = (mean - last[at]) / np.log(rank / highest[at]), seeds > 0
        count[at] += here
        lowest[at] = np.where(here & (count[at] == 1), rank, lowest[at])
        low[at] = np.where(here & (count[at] == 2), slope, low[at])
        high[at] = np.where(here, slope, high[at])
        highest[at] = np.where(here, rank, highest[at])
        last[at] = np.where(here, mean, last[at])
    return _Ends(count, lowest, highest, low, high)


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
