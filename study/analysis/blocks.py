"""Seeds with unequal ranks: which of them, and which ranks, a line is fitted to.

Along a bent curve a slope depends on the ranks that it is over. A seed that lacks the high ranks,
because it runs or diverged, has another slope than the rest, and must not enter their mean. So all
seeds of a fit have the same ranks: it uses a **block**, some of the ranks and every seed that has
all of these. Of all blocks it uses the one with the largest

    (number of seeds) * (sum of squares of log rank about its mean),

the block whose slope has the smallest standard error if the points have independent errors. A
block of one seed is used only if there is no other: one seed has no interval over seeds. The choice
does not depend on the values, so it does not bias the slope.

Dropping the highest of 5 ranks halves the sum of squares. So of 5 seeds, one that lacks the highest
rank is left out, and the fit has the range of ranks that the complete study has. If only one of
5 seeds has the highest rank, that rank is left out.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from study.vocabulary.thresholds import RANKS_FOR_INTERVAL

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]
Mask = npt.NDArray[np.bool_]


def common_points(
    there_FC: Mask, x_F: Floats, start_S: Ints, group_G: Ints, weight_F: Floats
) -> Mask:
    """The points that lines are fitted to, ``[F, C]``: ``there_FC`` less those outside the block.

    ``x_F`` is log rank; the other letters are those of :mod:`study.analysis.fits`. A seed with
    fewer than three ranks is left out if another has three, also where no seed lacks a rank.
    """
    start_G = start_S[group_G]
    points_SC = np.add.reduceat(there_FC, start_S, axis=0, dtype=np.intp)
    most_GC = np.maximum.reduceat(points_SC, group_G, axis=0)
    seeds_GC = np.add.reduceat(points_SC > 0, group_G, axis=0, dtype=np.intp)
    points_GC = np.add.reduceat(points_SC, group_G, axis=0)
    # All seeds have the same number of ranks, and as many as there are ranks in the group.
    uneven_GC = points_GC != seeds_GC * most_GC
    uneven_GC |= most_GC < _distinct(there_FC, x_F, start_G)
    if not uneven_GC.any():
        return there_FC

    strand_F = np.repeat(np.arange(len(start_S)), np.diff(np.append(start_S, len(x_F))))
    end_G = np.append(start_G[1:], len(x_F))
    kept_FC = there_FC.copy()
    blocks: dict[bytes, _Blocks] = {}  # groups often have the same frames, missing ones apart
    for group in np.flatnonzero(uneven_GC.any(axis=1)):
        frames = slice(start_G[group], end_G[group])
        design = (x_F[frames], strand_F[frames] - strand_F[start_G[group]], weight_F[frames])
        key = b"".join(part.tobytes() for part in design)
        if key not in blocks:
            blocks[key] = _Blocks(*design)
        columns = np.flatnonzero(uneven_GC[group])
        there_cf = np.ascontiguousarray(there_FC[frames, columns].T)
        kept_FC[frames, columns] = np.array([blocks[key].of(there_f) for there_f in there_cf]).T
    return kept_FC


def _distinct(there_FC: Mask, x_F: Floats, start_G: Ints) -> Ints:
    """The number of ranks that any seed of a group has, ``[G, C]``."""
    count_GC = np.zeros((len(start_G), there_FC.shape[1]), np.intp)
    group_F = np.repeat(np.arange(len(start_G)), np.diff(np.append(start_G, len(x_F))))
    for x in np.unique(x_F):
        frames = np.flatnonzero(x_F == x)
        group = group_F[frames]
        first = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
        count_GC[group[first]] += np.logical_or.reduceat(there_FC[frames], first, axis=0)
    return count_GC


class _Blocks:
    """The best blocks of the frames ``f`` of one group, by the pattern of missing points.

    A set of ranks is an integer, one bit per rank.
    """

    def __init__(self, x_f: Floats, seed_f: Ints, weight_f: Floats) -> None:
        x_R, first, rank_f = np.unique(x_f, return_index=True, return_inverse=True)
        self.x_R, self.weight_R = x_R, weight_f[first]
        self.seed_f, self.rank_f = seed_f, rank_f
        self.seeds, self.bit_f = seed_f.tolist(), [1 << rank for rank in rank_f.tolist()]
        self.spreads: dict[int, float] = {}
        self.found: dict[bytes, Mask] = {}

    def of(self, there_f: Mask) -> Mask:
        """The points of the best block, ``[f]``."""
        pattern = there_f.tobytes()
        if pattern not in self.found:
            self.found[pattern] = self._best(there_f)
        return self.found[pattern]

    def _best(self, there_f: Mask) -> Mask:
        """A best set of ranks cannot be extended, so it is an intersection of the sets of seeds."""
        of_seed = [0] * (self.seeds[-1] + 1)
        for frame in np.flatnonzero(there_f).tolist():
            of_seed[self.seeds[frame]] |= self.bit_f[frame]
        shared: set[int] = set()
        for own in of_seed:
            shared |= {own & ranks for ranks in shared} | {own}
        needed = min(RANKS_FOR_INTERVAL, max(own.bit_count() for own in of_seed))
        best, most = 0, (0, -1.0, 0)
        for ranks in sorted(shared):
            if ranks and ranks.bit_count() >= needed:
                seeds = sum(own & ranks == ranks for own in of_seed)
                precision = round(seeds * self._spread(ranks), 9)
                value = min(seeds, 2), precision, seeds  # a tie in precision: more seeds
                if value > most:
                    best, most = ranks, value
        has_S = np.array([own & best == best for own in of_seed])
        return np.asarray(has_S[self.seed_f] & (best >> self.rank_f & 1).astype(bool))

    def _spread(self, ranks: int) -> float:
        """The sum of squares of log rank about its mean, over a set of ranks."""
        if ranks not in self.spreads:
            chosen = [k for k in range(len(self.x_R)) if ranks >> k & 1]
            x, weight = self.x_R[chosen], self.weight_R[chosen]
            centre = (weight * x).sum() / weight.sum()
            self.spreads[ranks] = float((weight * (x - centre) ** 2).sum())
        return self.spreads[ranks]
