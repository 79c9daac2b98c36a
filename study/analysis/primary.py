"""The primary test of a study: do all its exponents together follow theory?

An experiment states it beforehand (:class:`study.config.expectations.Primary`). In each seed, the
measured exponents of all rows are regressed on the predicted ones: slope 1, intercept 0, a small
root mean square deviation, and nearer than the rival theory. docs/intervals.md has the tests.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from study.analysis.expectations import compare
from study.analysis.exponents import fit_exponents
from study.analysis.fits import Floats, mean_interval, t_critical
from study.analysis.grouping import seed_numbers
from study.analysis.predictions import with_predictions
from study.analysis.rates import NORMAL
from study.analysis.stable import stable_exponents
from study.analysis.verdicts import beyond, tost
from study.config.expectations import LAST, P_STAR, P_STAR_LIMIT, Entry, Expectation, Primary
from study.store import StudyTables
from study.vocabulary.thresholds import SEEDS_FOR_VERDICT, SIGNIFICANCE
from study.vocabulary.verdicts import AGREES, DIFFERS, ONE_SEED, UNCLEAR


@dataclass(frozen=True)
class Answer:
    """A primary test and its result.

    - ``predicted``, ``rival``: of each row, ``[N]``; ``measured_SN``: of each seed and row, NaN if
      a seed lacks it;
    - ``lines_S2``: intercept and slope of each seed; the slopes are NaN if all rows have one
      predicted value. ``se_grid_2``: the part of their errors that seeds share;
    - ``squares_S``: the square of the deviation from theory, a pseudo-value for each seed.
      ``se_grid_square``: the part of its error that seeds share;
    - ``is_identity``: whether all of its rows are identities of the first steps.
    """

    primary: Primary
    predicted: Floats
    rival: Floats
    measured_SN: Floats
    lines_S2: Floats
    se_grid_2: Floats
    squares_S: Floats
    se_grid_square: float
    verdict: str
    is_identity: bool = False

    @property
    def seeds(self) -> int:
        return len(self.lines_S2)

    def interval(self, which: int) -> tuple[float, float, float]:
        """The intercept (0) or the slope (1) with its 95 % interval."""
        value, _, high = mean_interval(self.lines_S2[:, which])
        half = math.hypot(high - value, NORMAL * self.se_grid_2[which])
        return value, value - half, value + half

    def deviation(self, theory: Floats) -> float:
        """The root mean square of measured minus predicted, over rows, of the means over seeds."""
        return float(np.sqrt(np.mean((np.nanmean(self.measured_SN, axis=0) - theory) ** 2)))


def answer(primary: Primary, entries: Sequence[Entry], tables: StudyTables) -> Answer | None:
    """The result of a primary test; None if fewer than two of its exponents were measured."""
    asked = primary.of(entries)
    rows = [row for row, _ in asked]
    whole = [row for row in compare(rows, tables) if not math.isnan(row.measured)]
    places = {(rows.index(row.expectation), row.curve): n for n, row in enumerate(whole)}
    if len(places) < 2:
        return None
    measured = [np.full(len(places), math.nan) for _ in range(seed_numbers(tables.cells).max() + 1)]
    for values, own in zip(measured, _by_seed(tables, rows), strict=True):
        for row in compare(rows, own):
            place = places.get((rows.index(row.expectation), row.curve))
            if place is not None:
                values[place] = row.measured
    measured_SN = np.array(measured)
    of_row = [
        (row.expectation.predicted, asked[rows.index(row.expectation)][1], row.grid)
        for row in whole
    ]
    has = np.isfinite(measured_SN).any(axis=0)  # a row may need several seeds
    predicted, rival, grid = np.array(of_row)[has].T
    found = judged(primary, predicted, rival, measured_SN[:, has], grid)
    return replace(found, is_identity=all(row.is_identity for row in rows))


def judged(
    primary: Primary, predicted: Floats, rival: Floats, measured_SN: Floats, grid: Floats
) -> Answer:
    """The result for these exponents. ``grid``: standard errors that all seeds share, ``[N]``."""
    alone = ONE_SEED if len(measured_SN) == 1 else UNCLEAR
    measured_SN = measured_SN[np.isfinite(measured_SN).sum(axis=1) > 1]
    lines = np.array([line(predicted, own, grid) for own in measured_SN]).reshape(-1, 2, 2)
    mean = np.nanmean(measured_SN - predicted, axis=0)
    found = Answer(
        primary=primary,
        predicted=predicted,
        rival=rival,
        measured_SN=measured_SN,
        lines_S2=lines[:, 0],
        se_grid_2=lines[:, 1].mean(axis=0) if len(lines) else np.zeros(2),
        # Errors of the grid add their variances to squares.
        squares_S=squared_deviation(measured_SN - predicted) - np.mean(grid**2),
        se_grid_square=math.sqrt(np.sum(4 * mean**2 * grid**2 + 2 * grid**4)) / len(grid),
        verdict=UNCLEAR,
    )
    if found.seeds < SEEDS_FOR_VERDICT:
        return replace(found, verdict=alone)
    df = found.seeds - 1
    p_agrees, p_differs = [], []
    square, low, _ = mean_interval(found.squares_S)
    half = math.hypot(square - low, NORMAL * found.se_grid_square)
    tests = [(square, half, primary.tolerance**2)]
    for which, expected in ((0, 0.0), (1, 1.0)):
        value, low, _ = found.interval(which)
        tests += (
            [(value - expected, value - low, primary.tolerance)] if math.isfinite(value) else []
        )
    for off, half, tolerance in tests:
        p_agrees.append(float(tost(off, half / t_critical(df), df, tolerance)))
        p_differs.append(float(beyond(off, half / t_critical(df), df, tolerance)))
    nearer = np.nanmean((measured_SN - rival) ** 2 - (measured_SN - predicted) ** 2, axis=1)
    gain, low, _ = mean_interval(nearer)
    of_grid = 2 * math.sqrt(np.sum((predicted - rival) ** 2 * grid**2)) / len(grid)
    half = math.hypot(gain - low, NORMAL * of_grid)
    p = float(beyond(gain, half / t_critical(df), df, 0.0))
    p_agrees.append(p if gain > 0 else 1.0)
    p_differs.append(p if gain < 0 else 1.0)
    if max(p_agrees) <= SIGNIFICANCE:
        return replace(found, verdict=AGREES)
    if min(p_differs) * len(p_differs) <= SIGNIFICANCE:
        return replace(found, verdict=DIFFERS)
    return found


def squared_deviation(off_SN: Floats) -> Floats:
    """The jackknife's pseudo-values of the mean square deviation, ``[S]``; missing rows take the
    other seeds' mean."""
    off_SN = np.where(np.isfinite(off_SN), off_SN, np.nanmean(off_SN, axis=0))
    products = off_SN @ off_SN.T / off_SN.shape[1]
    np.fill_diagonal(products, 0.0)
    seeds = len(products)
    if seeds < SEEDS_FOR_VERDICT:
        return np.full(seeds, math.nan)
    whole = products.sum() / (seeds * (seeds - 1))
    without = (products.sum() - 2 * products.sum(axis=1)) / ((seeds - 1) * (seeds - 2))
    return np.asarray(seeds * whole - (seeds - 1) * without)


def line(predicted: Floats, measured: Floats, grid: Floats) -> tuple[Floats, Floats]:
    """Intercept and slope of measured on predicted exponents (NaN if all predict one value), and
    their errors from the ``grid``."""
    has = np.isfinite(measured)
    x, y, grid = predicted[has], measured[has], grid[has]
    off = x - x.mean()
    if np.ptp(x) < 1e-9:
        of_mean = np.sqrt(np.sum(grid**2)) / len(x)
        return np.array([(y - x).mean(), math.nan]), np.array([of_mean, 0.0])
    of_slope = off / np.sum(off**2)
    of_intercept = 1 / len(x) - x.mean() * of_slope
    weights = np.array([of_intercept, of_slope])
    return weights @ y, np.sqrt(weights**2 @ grid**2)


def _by_seed(tables: StudyTables, rows: Sequence[Expectation]) -> Iterator[StudyTables]:
    """The tables of each seed, with what ``rows`` need of its cells alone."""
    number, ids = seed_numbers(tables.cells), tables.cells["cell_id"].astype(str)
    asked = {(row.site, row.stat, row.step) for row in rows if row.site}
    sites, stats = {site for site, _, _ in asked}, sorted({str(stat) for _, stat, _ in asked})
    kinds, layers = {row.what for row in rows}, {row.place["layer"] for row in rows if row.site}
    for one in range(number.max() + 1):
        mine = set(ids[number == one])
        cells, metrics, probes, distances = (
            table[table["cell_id"].astype(str).isin(mine)] if len(table) else table
            for table in (tables.cells, tables.metrics, tables.probes, tables.distances)
        )
        exponents = stable = pd.DataFrame()
        if sites:
            fits = fit_exponents(cells, probes[probes["site"].isin(sites)], stats=stats)
            places = zip(fits["site"], fits["stat"], fits["step"], strict=True)
            fits = fits[[(a, b, c) in asked or (a, b, LAST) in asked for a, b, c in places]]
            if P_STAR_LIMIT not in kinds:  # it alone needs the predictions of all layers
                fits = fits[fits["layer"].isin(layers)]
            exponents = fits
            if kinds & {P_STAR, P_STAR_LIMIT}:
                exponents = with_predictions(fits, cells, metrics, probes)
                stable = stable_exponents(exponents)
        rates = tables.rates[tables.rates["seed"] == one] if len(tables.rates) else tables.rates
        own = {"exponents": exponents, "stable": stable, "rates": rates, "distances": distances}
        yield replace(tables, cells=cells, metrics=metrics, probes=probes, **own)
