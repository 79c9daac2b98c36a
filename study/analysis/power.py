"""How many seeds an experiment needs, from a pilot of at least three.

Of each expectation the pilot gives the standard deviation over seeds. It decides with n seeds if
the 95 % interval lies within the tolerance, or outside. The power is the probability of that, for
an estimate that is Gaussian over seeds and a standard deviation that is estimated with it: the
normal probability of a decision, averaged over the distribution of the estimated deviation (the
integral of Owen 1965 for two one-sided t-tests). Holm's method is counted: of m rows, the k-th
easiest is tested at 5 % / (m + 1 - k).

A tolerance is *hopeless* if even a perfect theory is not shown to agree with :data:`MOST_SEEDS`.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from study.analysis.expectations import tests_of, values
from study.analysis.fits import Floats
from study.analysis.primary import answer
from study.analysis.rates import NORMAL
from study.config.expectations import Entry, Expectation, Primary
from study.store import StudyTables
from study.vocabulary.thresholds import SEEDS_FOR_VERDICT, SIGNIFICANCE

POWER = 0.8
"""The probability of a decision that a number of seeds must have."""
MOST_SEEDS = 50
"""Numbers of seeds that are considered."""
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
    deviation beside those of its own seeds. ``level``: of the test after Holm's correction.
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
    """The least number of seeds with the wanted power; NaN beyond :data:`MOST_SEEDS`."""
    enough = (n for n in range(SEEDS_FOR_VERDICT, MOST_SEEDS + 1) if power(n) >= POWER)
    return next(enough, math.nan)


def seeds_needed(entries: Sequence[Entry], tables: StudyTables) -> pd.DataFrame:
    """What each expectation, and the primary test, needs. ``tables``: of a pilot.

    Columns: ``expectation`` (None: the primary test), ``curve``; ``measured`` minus expected in
    ``off``, ``sd``, ``tolerance``; ``if_exact``: the seeds that show that it agrees if theory is
    exact; ``as_pilot``: the seeds that decide, if the truth is as in the pilot. NaN: more than
    :data:`MOST_SEEDS`. Rows that the pilot lacks, or has at fewer than three seeds, are left out.
    """
    rows = values([one for one in entries if isinstance(one, Expectation)], tables)
    tests = tests_of(rows)
    has = np.flatnonzero(tests.own_df > 0)

    def needs(n: int, level: float, exact: bool) -> float:
        def power(seeds: int) -> float:
            off = 0.0 if exact else float(tests.off[n])
            more = float(tests.df[n] - tests.own_df[n])
            own = {"grid": float(tests.grid[n]), "more_df": more, "level": level}
            found = decided(seeds, off, float(tests.sd[n]), float(tests.margin[n]), **own)
            return found[0] if exact else max(found)

        return seeds_for(power)

    columns: dict[str, dict[int, float]] = {}
    for name, exact in (("if_exact", True), ("as_pilot", False)):
        first = {n: needs(n, SIGNIFICANCE / len(has), exact) for n in has}
        in_order = sorted(has, key=lambda n: first[n] if first[n] == first[n] else math.inf)
        columns[name] = {
            n: needs(n, SIGNIFICANCE / (len(has) - k), exact) for k, n in enumerate(in_order)
        }
    table = [
        {
            "expectation": rows[n][0],
            "curve": rows[n][1]["curve"],
            "off": float(tests.off[n]),
            "sd": float(tests.sd[n]),
            "tolerance": float(tests.margin[n]),
            **{name: column[n] for name, column in columns.items()},
        }
        for n in has
    ]
    joint = [_of_primary(one, entries, tables) for one in entries if isinstance(one, Primary)]
    return pd.DataFrame([*filter(None, joint), *table])


def _of_primary(
    one: Primary, entries: Sequence[Entry], tables: StudyTables
) -> dict[str, object] | None:
    """The row of the primary test, whose line must lie within the tolerance in both numbers."""
    found = answer(one, entries, tables)
    if found is None or found.seeds < SEEDS_FOR_VERDICT:
        return None
    sd: Floats = found.lines_S2.std(axis=0, ddof=1)
    off = found.lines_S2.mean(axis=0) - [0.0, 1.0]
    parts = [k for k in (0, 1) if math.isfinite(off[k])]

    def power(n: int, exact: bool) -> float:
        of = [
            decided(n, 0.0 if exact else off[k], sd[k], one.tolerance, grid=found.se_grid_2[k])
            for k in parts
        ]
        if not exact:
            square, scatter = found.squares_S.mean(), found.squares_S.std(ddof=1)
            of.append(decided(n, square, scatter, one.tolerance**2))
        agrees = 1 - sum(1 - agreed for agreed, _ in of)  # of all, at least
        return agrees if exact else max(agrees, max(differed for _, differed in of))

    worst = max(parts, key=lambda k: sd[k])
    return {
        "expectation": None,
        "curve": "",
        "off": float(off[worst]),
        "sd": float(sd[worst]),
        "tolerance": one.tolerance,
        "if_exact": seeds_for(lambda n: power(n, True)),
        "as_pilot": seeds_for(lambda n: power(n, False)),
    }
