"""How many seeds an experiment needs, from a pilot of at least three (docs/measured.md).

The pilot gives the standard deviation over seeds of each expectation. With n seeds, the verdict is
decided if the 95 % interval lies within the tolerance, or outside. A tolerance is *hopeless* if
:data:`MOST_SEEDS` seeds cannot show that even a perfect theory agrees.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from study.analysis.expectations import Answer, Compared, answer, compare, judged
from study.analysis.rates import NORMAL
from study.config.expectations import Entry, Expectation, Primary
from study.store import StudyTables
from study.vocabulary.thresholds import SEEDS_FOR_VERDICT, SIGNIFICANCE
from study.vocabulary.verdicts import AGREES, DIFFERS

POWER = 0.8
"""The probability of a decision that a number of seeds must have."""
MOST_SEEDS = 50
"""Numbers of seeds that are considered."""
OF_GRID = NORMAL + float(stats.norm.ppf((1 + POWER) / 2))
"""Without any scatter of seeds, the tolerance that :data:`POWER` needs, in standard errors."""
SIMULATED = 200
"""Studies that the power of a primary test is simulated with, for a number of seeds."""
QUANTILES = (np.arange(400) + 0.5) / 400


def decided(
    n: int,
    off: float,
    sd: float,
    tolerance: float,
    *,
    grid: float = 0.0,
    more_df: float = 0.0,
    level: float = SIGNIFICANCE,
) -> tuple[float, float]:
    """The probabilities of ``agrees`` and of ``differs`` with ``n`` seeds.

    ``off``: the true distance from the expected value. ``sd``: the standard deviation of a seed.
    ``grid``: of the error that all seeds share. ``more_df``: degrees of freedom of the standard
    deviation with those of its own seeds. ``level``: of the test after Holm's correction.
    """
    df = min(n - 1 + more_df, 1e6)
    estimated = sd / math.sqrt(n) * np.sqrt(stats.chi2.ppf(QUANTILES, df) / df)
    half = np.hypot(stats.t.ppf(1 - level / 2, df) * estimated, NORMAL * grid)
    scale = max(math.hypot(sd / math.sqrt(n), grid), 1e-12)
    inside, outside = tolerance - half, tolerance + half
    agrees = stats.norm.cdf((inside - off) / scale) - stats.norm.cdf((-inside - off) / scale)
    differs = stats.norm.sf((outside - off) / scale) + stats.norm.cdf((-outside - off) / scale)
    return float(np.maximum(agrees, 0.0).mean()), float(differs.mean())


def seeds_for(power: Callable[[int], float]) -> float:
    """The least number of seeds with the wanted power, which grows with them; NaN beyond
    :data:`MOST_SEEDS`."""
    numbers = range(SEEDS_FOR_VERDICT, MOST_SEEDS + 1)
    place = bisect_left(numbers, True, key=lambda n: power(n) >= POWER)
    return numbers[place] if place < len(numbers) else math.nan


@dataclass(frozen=True)
class Need:
    """What an expectation needs, or the primary test (``row`` is None).

    - ``off``: measured minus expected. ``sd``: of a seed. For the primary test, of its
      intercept or slope, whichever scatters more;
    - ``if_exact``: the seeds that show agreement if theory is exact. ``as_pilot``: the seeds that
      decide if the truth is as in the pilot. NaN: more than :data:`MOST_SEEDS`;
    - ``least``: the lowest tolerance within which any number of seeds shows that an exact theory
      agrees. All seeds share the grid of rates and its error.
    """

    row: Compared | None
    off: float
    sd: float
    tolerance: float
    if_exact: float
    as_pilot: float
    least: float


def seeds_needed(entries: Sequence[Entry], tables: StudyTables) -> list[Need]:
    """The needs of the primary test and of each expectation, from the ``tables`` of a pilot. Rows
    that it lacks, or has at fewer than three seeds, are left out."""
    rows = compare([one for one in entries if isinstance(one, Expectation)], tables)
    rows = [row for row in rows if row.own_df > 0]

    def by_row(exact: bool) -> list[float]:
        def needs(row: Compared, level: float) -> float:
            off = 0.0 if exact else row.off
            more = {"grid": row.grid, "more_df": row.df - row.own_df, "level": level}

            def power(n: int) -> float:
                found = decided(n, off, row.sd, row.margin, **more)
                return found[0] if exact else max(found)

            return seeds_for(power)

        first = np.array([needs(row, SIGNIFICANCE / len(rows)) for row in rows])
        place = first.argsort().argsort()  # NaNs last
        return [
            needs(row, SIGNIFICANCE / (len(rows) - k)) for row, k in zip(rows, place, strict=True)
        ]

    found = [answer(one, entries, tables) for one in entries if isinstance(one, Primary)]
    joint = [need_of_primary(one) for one in found if one and one.seeds >= SEEDS_FOR_VERDICT]
    both = zip(rows, by_row(True), by_row(False), strict=True)
    single = [
        Need(row, row.off, row.sd, row.margin, exact, here, OF_GRID * row.grid)
        for row, exact, here in both
    ]
    return [*joint, *single]


def need_of_primary(found: Answer) -> Need:
    """The need of a primary test with this result in a pilot of at least three seeds, by simulated
    studies: seeds are normal with the covariance of the pilot's, and share the error of the grid.
    """
    tolerance, sd = found.primary.tolerance, found.lines_S2.std(axis=0, ddof=1)
    off = found.lines_S2.mean(axis=0) - [0.0, 1.0]
    mean = np.nanmean(found.measured_SN, axis=0)
    rest_SN = np.nan_to_num(found.measured_SN - mean) / math.sqrt(found.seeds - 1)

    def power(n: int, exact: bool) -> float:
        draw, words = np.random.default_rng(0), Counter[str]()
        truth = found.predicted if exact else mean
        for _ in range(SIMULATED):
            shared = truth + found.grid * draw.normal(size=len(truth))
            drawn_nN = shared + draw.normal(size=(n, len(rest_SN))) @ rest_SN
            result = judged(found.primary, found.predicted, found.rival, drawn_nN, found.grid)
            words[result.verdict] += 1
        return (words[AGREES] if exact else max(words[AGREES], words[DIFFERS])) / SIMULATED

    worst = max((k for k in (0, 1) if math.isfinite(off[k])), key=lambda k: sd[k])
    numbers = float(off[worst]), float(sd[worst]), tolerance
    seeds = seeds_for(lambda n: power(n, True)), seeds_for(lambda n: power(n, False))
    return Need(None, *numbers, *seeds, least=OF_GRID * float(found.se_grid_2.max()))
