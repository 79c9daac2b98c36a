"""Expectations compared with measurements: each with a verdict by equivalence, and all at once in a
primary test. docs/measured.md has the tests.

An expectation (:mod:`study.config.expectations`) has a row for every curve that it matches. A
factor is compared as its logarithm. The interval of a p* from several rules need not be symmetric;
its longer half counts.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from study.analysis.capacity import capacity
from study.analysis.distances import exponents_of
from study.analysis.exponents import fit_exponents
from study.analysis.fits import Floats, mean_interval, t_critical
from study.analysis.grouping import RULE, curve_columns, distinguishing, seed_numbers
from study.analysis.losses import loss_differences, loss_gaps
from study.analysis.predictions import with_predictions
from study.analysis.rates import NORMAL, alpha_gaps, alpha_transfer, best_alphas, rate_transfer
from study.analysis.stable import one_per_optimizer, stable_exponents
from study.analysis.verdicts import beyond, holm, moderated, tost
from study.analysis.wording import setting_labels
from study.config import expectations as kinds
from study.config.expectations import Entry, Expectation, Primary
from study.store import StudyTables
from study.vocabulary.scaling import rule_label
from study.vocabulary.thresholds import SEEDS_FOR_VERDICT, SIGNIFICANCE
from study.vocabulary.verdicts import AGREES, DIFFERS, ONE_SEED, UNCLEAR


def _best_alphas(of: StudyTables) -> pd.DataFrame:
    return best_alphas(of.cells, of.metrics, of.probes)


OF_A_LINE, OF_A_GAP = ("exponent", "ci_low", "ci_high"), ("gap", "ci_low", "ci_high")
SOURCES: dict[str, tuple[Callable[[StudyTables], pd.DataFrame], tuple[str, str, str]]] = {
    **dict.fromkeys((kinds.SLOPE, kinds.FACTOR), (lambda of: of.exponents, OF_A_LINE)),
    kinds.P_STAR: (lambda of: of.stable, ("p_star", "ci_low", "ci_high")),
    kinds.P_STAR_LIMIT: (lambda of: of.stable, ("p_star_limit", "limit_low", "limit_high")),
    kinds.BEST_RATE: (lambda of: rate_transfer(of.rates), OF_A_LINE),
    kinds.BEST_ALPHA: (lambda of: alpha_transfer(_best_alphas(of)), OF_A_LINE),
    kinds.ALPHA_GAP: (lambda of: alpha_gaps(_best_alphas(of)), OF_A_GAP),
    kinds.LOSS_GAP: (lambda of: loss_gaps(of.cells, of.metrics), OF_A_GAP),
    kinds.DIFFERENCE: (lambda of: of.exponents, OF_A_GAP),  # each has its own: loss_differences
    kinds.DISTANCE: (lambda of: exponents_of(of.cells, of.distances), OF_A_LINE),
    kinds.CAPACITY: (capacity, OF_A_LINE),
    kinds.PER_PARAMETER: (capacity, ("per_parameter", "bits_low", "bits_high")),
}
"""Of each kind of expectation, the table with a row per curve, and the columns of the value and its
interval."""


@dataclass(frozen=True)
class Compared:
    """An expectation with one curve that it is about.

    - ``curve``: the rule, if the expectation names none, and the settings that separate the curve
      from others of the study, as text;
    - ``step``: at which it was measured, None for a best rate;
    - ``off``, ``margin``: measured minus expected, and the tolerance; logarithms of a factor;
    - ``met``: whether the condition of the expectation is met, if it has one;
    - ``sd``, ``df``: the standard deviation over seeds, pooled over rows. ``own_df``: that of the
      row alone, 0 without a verdict. ``grid``: the standard error that all seeds share.
    """

    expectation: Expectation
    curve: str = ""
    measured: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seeds: int = 0
    step: int | None = None
    verdict: str = kinds.NOT_MEASURED
    off: float = math.nan
    margin: float = math.nan
    sd: float = math.nan
    df: float = 0.0
    own_df: float = 0.0
    grid: float = 0.0
    met: bool = True


def compare(expectations: Sequence[Expectation], tables: StudyTables) -> list[Compared]:
    """A row for each curve that an expectation matches; without one, a row ``not measured``."""
    found = {what: SOURCES[what][0](tables) for what in {one.what for one in expectations}}
    rows: list[Compared] = []
    for one in expectations:
        table = found[one.what]
        if one.what == kinds.DIFFERENCE:
            table = loss_differences(tables.cells, tables.metrics, one)
        rows += _measured(one, table, tables.exponents) or [Compared(one)]
    numbers = [
        (row.measured, row.low, row.high, row.grid, row.seeds, *_expected(row.expectation))
        for row in rows
    ]
    value, low, high, grid, seeds, expected, margin = np.array(numbers, float).reshape(-1, 7).T
    half = np.maximum(high - value, value - low)
    met = np.array([row.met for row in rows], bool)
    own_df = np.where((seeds >= SEEDS_FOR_VERDICT) & np.isfinite(half) & met, seeds - 1, 0.0)
    kind_of = np.array([row.expectation.what for row in rows])
    with np.errstate(divide="ignore", invalid="ignore"):
        of_seeds = np.maximum(half**2 - (NORMAL * grid) ** 2, 0) / t_critical(own_df) ** 2
        variance, df = seeds * of_seeds, own_df.copy()  # of one seed
        for kind in np.unique(kind_of):
            mine = kind_of == kind
            variance[mine], df[mine] = moderated(variance[mine], df[mine])
        se = np.hypot(np.sqrt(variance / seeds), NORMAL * grid / t_critical(df))
    off = value - expected
    agrees, differs = holm(tost(off, se, df, margin)), holm(beyond(off, se, df, margin))
    words = np.select([agrees <= SIGNIFICANCE, differs <= SIGNIFICANCE], [AGREES, DIFFERS], UNCLEAR)
    special = {kinds.NOT_MEASURED: seeds == 0, kinds.NOT_MET: ~met, ONE_SEED: seeds == 1}
    words = np.select([*special.values()], [*special], words)
    tests = pd.DataFrame({"off": off, "margin": margin, "sd": np.sqrt(variance), "df": df})
    tests = tests.assign(own_df=own_df, verdict=words)
    shown = (_as_factor(row) if row.expectation.what == kinds.FACTOR else row for row in rows)
    return [
        replace(row, **{str(name): value for name, value in test.items()})
        for row, test in zip(shown, tests.to_dict("records"), strict=True)
    ]


def _expected(one: Expectation) -> tuple[float, float]:
    """The value and the tolerance; of a factor, their logarithms."""
    is_factor = one.what == kinds.FACTOR
    value, tolerance = one.predicted, one.tolerance
    return (math.log(value), math.log(tolerance)) if is_factor else (value, tolerance)


def _as_factor(row: Compared) -> Compared:
    value, low, high = map(math.exp, (row.measured, row.low, row.high))
    return replace(row, measured=value, low=low, high=high)


def _measured(one: Expectation, table: pd.DataFrame, exponents: pd.DataFrame) -> list[Compared]:
    """The value and interval of every curve that an expectation is about; of a factor, the
    logarithms."""
    value, low, high = SOURCES[one.what][1]
    found = _rows_about(one, table)
    if found.empty or value not in found:
        return []
    stable = one.what in (kinds.P_STAR, kinds.P_STAR_LIMIT)
    if one.what in (kinds.ALPHA_GAP, kinds.DIFFERENCE):
        known = ["rank", "alpha", "lr", "steps"]
    elif one.what in (kinds.BEST_RATE, kinds.BEST_ALPHA, kinds.CAPACITY, kinds.PER_PARAMETER):
        known = curve_columns(found)
    else:
        if one.lr is None:  # those at the lowest learning rate
            found = found[found["lr"] == found["lr"].min()]
        known = curve_columns(found if stable else exponents)
    names = distinguishing(found, [name for name in known if name in found])
    if stable:  # one for all rules of a setting
        found = one_per_optimizer(found, names)
    found = found[found[value].notna()]
    rows = []
    for row, setting in zip(found.to_dict("records"), setting_labels(found, names), strict=True):
        rule = ""
        if one.rule is None and not stable:
            p = row["exponent_p"]
            rule = rule_label(*(row[name] for name in RULE)) if pd.isna(p) else f"p={p:g}"
        span = math.log(row["rank_max"] / row["rank_min"]) if one.what == kinds.FACTOR else 1.0
        named = {"measured": value, "low": low, "high": high, "grid": "se_grid"}
        numbers: Any = {n: float(row.get(name, 0.0)) * span for n, name in named.items()}
        step = int(row["step"]) if "step" in kinds.NEEDS[one.what] else None
        curve = ", ".join(filter(None, (rule, setting)))
        met = one.once is None or bool(row[one.once])
        rows.append(Compared(one, curve, seeds=int(row["seeds"]), step=step, met=met, **numbers))
    return rows


def _rows_about(one: Expectation, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of its quantity and step, if it has these, and of its optimizer, rule and rates."""
    if table.empty:
        return table
    rows, needs = table, {*kinds.NEEDS[one.what]}
    if "step" in needs:
        for name, value in one.place.items() if {"site", "measure"} & needs else ():
            rows = rows[rows[name].astype(object) == value]
        rows = rows[rows["step"] == (rows["step"].max() if one.step == kinds.LAST else one.step)]
    here = rows["optimizer"].astype(object) == one.optimizer
    if one.p is not None:
        here &= np.isclose(rows["exponent_p"].astype(float), one.p)
    elif one.rule is not None:
        here &= rows["scaling"].astype(object) == one.rule
    for name in ("alpha", "eps", "lr"):
        wanted = getattr(one, name)
        if wanted is not None and name in rows:
            here &= np.isclose(rows[name].astype(float), wanted, rtol=1e-9, atol=0)
    return rows[here]


# The primary test.


@dataclass(frozen=True)
class Answer:
    """A primary test and its result.

    - ``predicted``, ``rival``: of each row, ``[N]``; ``measured_SN``: of each seed and row, NaN if
      a seed lacks it;
    - ``lines_S2``: intercept and slope of each seed; the slopes are NaN if all rows have one
      predicted value. ``se_grid_2``: the part of their errors that seeds share;
    - ``squares_S``: the square of the deviation from theory, a pseudo-value for each seed.
      ``se_grid_square``: the part of its error that seeds share;
    - ``grid``: the standard errors that all seeds share, ``[N]``;
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
    grid: Floats
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
    """The result of a primary test; None if none of its exponents was measured."""
    asked = primary.of(entries)
    rows = [row for row, _ in asked]
    whole = [row for row in compare(rows, tables) if not math.isnan(row.measured)]
    if not whole:
        return None
    places = {(rows.index(row.expectation), row.curve): n for n, row in enumerate(whole)}
    measured = [np.full(len(places), math.nan) for _ in range(seed_numbers(tables.cells).max() + 1)]
    for values, own in zip(measured, _by_seed(tables, rows), strict=True):
        for row in compare(rows, own):
            place = places.get((rows.index(row.expectation), row.curve))
            if place is not None:
                values[place] = row.measured
    measured_SN = np.array(measured)
    has = np.isfinite(measured_SN).any(axis=0)  # a row may need several seeds
    if not has.any():
        return None
    of_row = [
        (row.expectation.predicted, asked[rows.index(row.expectation)][1], row.grid)
        for row in whole
    ]
    predicted, rival, grid = np.array(of_row)[has].T
    found = judged(primary, predicted, rival, measured_SN[:, has], grid)
    return replace(found, is_identity=all(row.is_identity for row in rows))


def judged(
    primary: Primary, predicted: Floats, rival: Floats, measured_SN: Floats, grid: Floats
) -> Answer:
    """The result for these exponents. ``grid``: standard errors that all seeds share, ``[N]``."""
    alone = ONE_SEED if len(measured_SN) == 1 else UNCLEAR
    fewest = 2 if len(predicted) > 1 else 1  # rows of a seed that counts
    measured_SN = measured_SN[np.isfinite(measured_SN).sum(axis=1) >= fewest]
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
        grid=grid,
        verdict=UNCLEAR,
    )
    if found.seeds < SEEDS_FOR_VERDICT:
        return replace(found, verdict=alone)
    df = found.seeds - 1
    tests = []
    for which, expected in ((0, 0.0), (1, 1.0)):
        value, low, _ = found.interval(which)
        if math.isfinite(value):
            tests.append((value - expected, value - low, primary.tolerance))
    if len(predicted) > 1:  # of one row, the intercept is the deviation
        square, low, _ = mean_interval(found.squares_S)
        half = math.hypot(square - low, NORMAL * found.se_grid_square)
        tests.append((square, half, primary.tolerance**2))
    off, half_width, tolerance = np.array(tests).T
    se = half_width / t_critical(df)
    p_agrees, p_differs = [*tost(off, se, df, tolerance)], [*beyond(off, se, df, tolerance)]
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
    sites = {row.site for row in rows if row.site}
    stats = sorted({str(row.stat) for row in rows if row.site})
    asked = {row.what for row in rows}
    for one in range(number.max() + 1):
        mine = set(ids[number == one])
        cells, metrics, probes, distances = (
            table[table["cell_id"].astype(str).isin(mine)] if len(table) else table
            for table in (tables.cells, tables.metrics, tables.probes, tables.distances)
        )
        exponents = stable = pd.DataFrame()
        if sites:
            exponents = fit_exponents(cells, probes[probes["site"].isin(sites)], stats=stats)
            if asked & {kinds.P_STAR, kinds.P_STAR_LIMIT}:
                exponents = with_predictions(exponents, cells, metrics, probes)
                stable = stable_exponents(exponents)
        rates = tables.rates[tables.rates["seed"] == one] if len(tables.rates) else tables.rates
        own = {"exponents": exponents, "stable": stable, "rates": rates, "distances": distances}
        yield replace(tables, cells=cells, metrics=metrics, probes=probes, **own)
