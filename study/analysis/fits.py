"""Straight lines in log rank, hundreds of thousands at once, each with what it takes to doubt it.

Everything is closed form over whole arrays. The letters: ``F`` frames (one cell at one step), ``C`` columns (layers and
poolings of layers), ``S`` strands (the frames of one seed), ``G`` groups (the strands of one curve at one step). Frames
are sorted so that strands, and the strands of a group, are contiguous; a NaN is a point that is not there.

The seed is the unit: every seed gets its own least-squares line over the ranks it has, and the interval is Student's t
over those lines. Points within a seed share a batch and an initialisation and are no independent sample, so an interval
over ranks is given only where one seed is all there is.
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
    """How frames nest: each strand's first frame (``start_S``) and each group's first strand (``group_G``), ascending;
    and the way back, each frame's strand and each strand's group.
    """

    start_S: Ints
    group_G: Ints
    strand_F: Ints
    group_S: Ints

    @classmethod
    def of(cls, group_F: npt.ArrayLike, seed_F: npt.ArrayLike) -> "Strands":
        """From labels per frame. Frames must come sorted by group, then by seed."""
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
        """Each group's first frame."""
        return self.start_S[self.group_G]


@dataclass(frozen=True)
class Lines:
    """A line per group and column: ``log stat = log_stat_mean + slope * (log rank - log_rank_mean)``, all ``[G, C]``.

    ``slope`` is NaN where there are fewer than two ranks. ``se_*`` and ``cov`` are the standard errors of the two
    coefficients and their covariance, NaN with ``df = 0`` where there is no interval. ``points`` counts frames used.
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

    A seed's line is (weighted) least squares over the ranks it has; its ranks must be distinct. The group's line is the
    mean of its seeds' lines, and its errors are those of that mean, on ``seeds - 1`` degrees of freedom. With one seed
    they are the textbook regression errors on ``ranks - 2``. A seed with fewer than three ranks is left out where
    another has three: its slope is a difference of two points and would swamp the others. Fewer than three ranks in
    all give a slope without an interval.

    ``weight_F`` is proportional to the inverse variance of a frame (None: all equal).
    """
    rank = np.asarray(rank_F, float)
    x_F1 = np.log(rank)[:, None]
    there_FC = np.isfinite(y_FC)
    y = np.where(there_FC, y_FC, 0.0)
    w = there_FC * (
        np.ones_like(x_F1) if weight_F is None else np.asarray(weight_F, float)[:, None]
    )
    strand = strands.strand_F

    def over_frames(values: Floats) -> Floats:
        return np.add.reduceat(values, strands.start_S, axis=0)

    def over_seeds(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.add.reduceat(values, strands.group_G, axis=0)

    with np.errstate(invalid="ignore", divide="ignore"):
        # Each seed's line [S, C], about its own centre: two passes, so that an exact power law comes back exactly.
        points_SC = np.add.reduceat(there_FC, strands.start_S, axis=0, dtype=np.intp)
        w_SC = over_frames(w)
        x_SC = over_frames(w * x_F1) / w_SC
        y_SC = over_frames(w * y) / w_SC
        dx = x_F1 - x_SC[strand]
        dy = y - y_SC[strand]
        w_dx = w * dx
        sxx_SC = over_frames(np.where(there_FC, w_dx * dx, 0.0))
        slope_SC = over_frames(np.where(there_FC, w_dx * dy, 0.0)) / sxx_SC
        rss_SC = over_frames(np.where(there_FC, w * (dy - slope_SC[strand] * dx) ** 2, 0.0))

        most_GC = np.maximum.reduceat(points_SC, strands.group_G, axis=0)
        needed_GC = np.clip(most_GC, 2, RANKS_FOR_INTERVAL)
        used_SC = points_SC >= needed_GC[strands.group_S]
        seeds = over_seeds(used_SC.astype(np.intp))

        # The group's line [G, C], about the centre of all its points, where seeds that miss a rank can be compared.
        w_used = np.where(used_SC, w_SC, 0.0)
        x_GC = over_seeds(np.where(used_SC, w_SC * x_SC, 0.0)) / over_seeds(w_used)
        level_SC = y_SC + slope_SC * (x_GC[strands.group_S] - x_SC)
        slope = over_seeds(np.where(used_SC, slope_SC, 0.0)) / seeds
        level = over_seeds(np.where(used_SC, level_SC, 0.0)) / seeds
        d_slope = np.where(used_SC, slope_SC - slope[strands.group_S], 0.0)
        d_level = np.where(used_SC, level_SC - level[strands.group_S], 0.0)

        points = over_seeds(np.where(used_SC, points_SC, 0))
        variance_GC = over_seeds(np.where(used_SC, rss_SC, 0.0)) / (
            points - 2
        )  # of a point; used for one seed only
        one = seeds == 1
        of_mean = seeds * (seeds - 1.0)
        sxx_GC = over_seeds(np.where(used_SC, sxx_SC, 0.0))
        var_slope = np.where(one, variance_GC / sxx_GC, over_seeds(d_slope**2) / of_mean)
        var_level = np.where(
            one, variance_GC / over_seeds(w_used), over_seeds(d_level**2) / of_mean
        )
        cov = np.where(one, 0.0, over_seeds(d_slope * d_level) / of_mean)

    used_FC = there_FC & used_SC[strand]
    ranks, lowest, highest = _ranks_used(rank, used_FC, strands.start_G)
    df = np.where(ranks < RANKS_FOR_INTERVAL, 0, np.where(one, points - 2, seeds - 1)).clip(0)
    known = df > 0
    return Lines(
        slope=slope,
        log_rank_mean=x_GC,
        log_stat_mean=level,
        se_slope=np.sqrt(np.where(known, var_slope, np.nan)),
        se_mean=np.sqrt(np.where(known, var_level, np.nan)),
        cov=np.where(known, cov, np.nan),
        df=df,
        seeds=seeds,
        ranks=ranks,
        points=points,
        rank_min=lowest,
        rank_max=highest,
    )


def spread_slopes(
    rank_F: npt.ArrayLike, y_FL: Floats, strands: Strands, weight_F: npt.ArrayLike | None = None
) -> Floats:
    """The slope in log rank of the variance of ``y`` over a group's seeds at each rank, ``[G, L]``.

    Weighted as :func:`fit_lines` weighs; NaN where fewer than two ranks have two seeds. A curve is the logarithm of a
    mean, data are the mean of a logarithm, and what parts the two is half this variance, or all of it
    (:func:`study.theory.log_bias`).
    """
    rank = np.asarray(rank_F, float)
    group_F = strands.group_S[strands.strand_F]
    order = np.lexsort((rank, group_F))
    rank, group, y = rank[order], group_F[order], y_FL[order]
    start_P = np.flatnonzero(
        np.r_[True, (rank[1:] != rank[:-1]) | (group[1:] != group[:-1])]
    )  # places: group, rank
    of_place = np.repeat(np.arange(len(start_P)), np.diff(np.append(start_P, len(rank))))
    there = np.isfinite(y)
    x_P1, group_P = np.log(rank[start_P])[:, None], group[start_P]
    w_P1 = (np.ones_like(rank) if weight_F is None else np.asarray(weight_F, float)[order])[
        start_P, None
    ]
    start_G = np.flatnonzero(np.r_[True, group_P[1:] != group_P[:-1]])
    with np.errstate(invalid="ignore", divide="ignore"):
        seeds_PL = np.add.reduceat(there, start_P, axis=0, dtype=np.intp)
        mean_PL = np.add.reduceat(np.where(there, y, 0.0), start_P, axis=0) / seeds_PL
        off = np.where(there, y - mean_PL[of_place], 0.0)
        variance_PL = np.add.reduceat(off * off, start_P, axis=0) / (seeds_PL - 1)
        known = seeds_PL > 1
        w_PL = known * w_P1
        x_GL = np.add.reduceat(w_PL * x_P1, start_G, axis=0) / np.add.reduceat(
            w_PL, start_G, axis=0
        )
        dx = np.where(known, x_P1 - x_GL[group_P], 0.0)
        rise = np.add.reduceat(w_PL * dx * np.where(known, variance_PL, 0.0), start_G, axis=0)
        several = np.add.reduceat(known, start_G, axis=0, dtype=np.intp) > 1
        return np.where(several, rise / np.add.reduceat(w_PL * dx * dx, start_G, axis=0), np.nan)


def _ranks_used(rank_F: Floats, used_FC: Mask, start_G: Ints) -> tuple[Ints, Floats, Floats]:
    """How many distinct ranks each group uses, the lowest and the highest (NaN where none), all ``[G, C]``."""
    shape = (len(start_G), used_FC.shape[1])
    count, lowest, highest = (
        np.zeros(shape, np.intp),
        np.full(shape, np.nan),
        np.full(shape, np.nan),
    )
    for rank in np.unique(rank_F):  # ascending; a study has a dozen
        present = np.logical_or.reduceat(used_FC & (rank_F == rank)[:, None], start_G, axis=0)
        count += present
        lowest[present & (count == 1)] = rank
        highest[present] = rank
    return count, lowest, highest


def t_critical(df: npt.ArrayLike) -> Floats:
    """The half-width of a two-sided interval of confidence ``CONFIDENCE`` in standard errors; NaN where ``df`` is 0."""
    df = np.asarray(df, float)
    distinct, where = np.unique(df, return_inverse=True)  # a handful of values in a million rows
    half_width = np.full(distinct.shape, np.nan)
    half_width[distinct > 0] = special.stdtrit(distinct[distinct > 0], (1 + CONFIDENCE) / 2)
    return half_width[where].reshape(df.shape)


def fitted(row: Mapping[str, Any] | Any, rank: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """The line of one row of ``exponents`` at ``rank``, with its pointwise 95 % band, in the statistic's own units.

    Returns ``(value, low, high)``, each shaped like ``rank``; the band is NaN where the row has no interval. ``row`` is
    a Series, or anything else that gives ``row["log_rank_mean"]``. With several seeds the band is exactly the
    t-interval over the seeds' own lines at that rank, which is why the covariance is stored.
    """
    dx = np.log(np.asarray(rank, float)) - row["log_rank_mean"]
    centre = row["log_stat_mean"] + row["exponent"] * dx
    variance = row["se_mean"] ** 2 + 2 * dx * row["cov"] + (dx * row["se_slope"]) ** 2
    half_width = row["t_crit"] * np.sqrt(np.maximum(variance, 0.0))
    return np.exp(centre), np.exp(centre - half_width), np.exp(centre + half_width)
