"""Expectations beside what was measured, each with a verdict by equivalence.

An expectation (:mod:`study.config.expectations`) is about every curve that it matches, and each
has a row of its own. It ``agrees`` if the 95 % interval lies within the tolerance of the expected
value (two one-sided tests, Schuirmann 1987), and ``differs`` if it lies outside. Holm's method
corrects both for the number of rows: among all rows of a study, the probability of any false
``agrees`` is at most 2.5 %, and so is that of any false ``differs``.

A factor is compared as its logarithm. The interval of a p* from several rules need not be
symmetric; its longer half counts.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from study.analysis.distances import of_cells
from study.analysis.fits import Floats, t_critical
from study.analysis.grouping import curve_columns, distinguishing
from study.analysis.losses import loss_gaps
from study.analysis.rates import alpha_gaps, alpha_transfer, best_alphas, rate_transfer
from study.analysis.stable import (
    one_per_measurement,
    one_per_optimizer,
    side_by_side,
)
from study.analysis.verdicts import beyond, holm, tost
from study.analysis.wording import settings_text
from study.config.expectations import (
    ALPHA_GAP,
    BEST_ALPHA,
    BEST_RATE,
    DISTANCE,
    FACTOR,
    LAST,
    LOSS_GAP,
    NEEDS,
    NOT_MEASURED,
    P_STAR,
    P_STAR_LIMIT,
    SLOPE,
    Expectation,
)
from study.store import StudyTables
from study.vocabulary.thresholds import SEEDS_FOR_VERDICT, SIGNIFICANCE
from study.vocabulary.verdicts import AGREES, DIFFERS, ONE_SEED, UNCLEAR

COLUMNS_OF = {
    P_STAR: ("p_star", "ci_low", "ci_high"),
    P_STAR_LIMIT: ("p_star_limit", "limit_low", "limit_high"),
    **dict.fromkeys((LOSS_GAP, ALPHA_GAP), ("gap", "ci_low", "ci_high")),
    **dict.fromkeys(
        (SLOPE, FACTOR, BEST_RATE, BEST_ALPHA, DISTANCE), ("exponent", "ci_low", "ci_high")
    ),
}
"""The columns of the value and its interval, in the table that holds it."""


@dataclass(frozen=True)
class Compared:
    """An expectation beside one curve that it is about.

    - ``curve``: the rule, if the expectation names none, and the settings that separate the curve
      from others of the study, as text;
    - ``measured``, ``low``, ``high``: the value and its 95 % interval, NaN without one;
    - ``seeds``; ``step``: at which it was measured, None for a best rate;
    - ``verdict``: a key of :data:`study.config.expectations.MEANINGS`.
    """

    expectation: Expectation
    curve: str
    measured: float
    low: float
    high: float
    seeds: int
    step: int | None
    verdict: str


def compare(expectations: Sequence[Expectation], tables: StudyTables) -> list[Compared]:
    """A row for each curve that an expectation matches, in the order of ``expectations``.

    An expectation without a curve has one row, which is ``not measured``.
    """
    found = {what: _table(what, tables) for what in {one.what for one in expectations}}
    rows = [
        (one, row)
        for one in expectations
        for row in _measured(one, found[one.what], tables.exponents) or [_NOTHING]
    ]
    agrees, differs = _p_values(rows)
    return [
        Compared(
            one,
            row["curve"],
            *_displayed(one, row),
            seeds=row["seeds"],
            step=row["step"],
            verdict=_word(row, agrees[n], differs[n]),
        )
        for n, (one, row) in enumerate(rows)
    ]


Value = dict[str, Any]
_NOTHING: Value = dict.fromkeys(("value", "low", "high", "span"), math.nan) | {
    "curve": "",
    "seeds": 0,
    "step": None,
}


def _table(what: str, tables: StudyTables) -> pd.DataFrame:
    """The table that holds the values of a kind of expectation, a row per curve."""
    if what == BEST_RATE:
        return rate_transfer(tables.rates)
    if what in (P_STAR, P_STAR_LIMIT):
        return tables.stable
    if what == LOSS_GAP:
        return loss_gaps(tables.cells, tables.metrics)
    if what in (BEST_ALPHA, ALPHA_GAP):
        alphas = best_alphas(tables.cells, tables.metrics, tables.probes)
        return alpha_transfer(alphas) if what == BEST_ALPHA else alpha_gaps(alphas)
    if what == DISTANCE:
        return of_cells(tables.cells, tables.distances)
    return tables.exponents


def _measured(one: Expectation, table: pd.DataFrame, exponents: pd.DataFrame) -> list[Value]:
    """The value and interval of every curve that an expectation is about."""
    found = _of_curves(one, _at(one, table))
    if one.what in (BEST_RATE, BEST_ALPHA, ALPHA_GAP):
        known = [name for name in ("rank", "alpha", "lr", "setting") if name in found]
        names = distinguishing(found, known) if len(found) else []
    elif one.what in (P_STAR, P_STAR_LIMIT):
        found, names = _one_per_curve(_at_lowest_rate(one, found))
    else:
        found = _at_lowest_rate(one, found)
        known = [name for name in curve_columns(exponents) if name in found]
        names = distinguishing(found, known) if len(found) else []
    columns = COLUMNS_OF[one.what]
    if found.empty or columns[0] not in found:
        return []
    found = found[found[columns[0]].notna()]
    with_rule = one.rule is None and one.what not in (P_STAR, P_STAR_LIMIT)
    return [_row(one, row, names, with_rule) for row in found.to_dict("records")]


def _row(one: Expectation, row: dict[Any, Any], names: Iterable[str], with_rule: bool) -> Value:
    value, low, high = (float(row[name]) for name in COLUMNS_OF[one.what])
    settings = [f"p={row['exponent_p']:g}"] if with_rule else []
    settings += settings_text(row, names)
    return {
        "curve": ", ".join(settings),
        "value": value,
        "low": low,
        "high": high,
        "span": math.log(float(row["rank_max"]) / float(row["rank_min"])),
        "seeds": int(row["seeds"]),
        "step": int(row["step"]) if "step" in NEEDS[one.what] else None,
    }


def _at(one: Expectation, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of its quantity, if it has one, at its step, if it has one."""
    if table.empty or "step" not in NEEDS[one.what]:
        return table
    rows = table
    if {"site", "measure"} & {*NEEDS[one.what]}:
        for name, value in one.place.items():
            rows = rows[rows[name].astype(object) == value]
    step = rows["step"].max() if one.step == LAST else one.step
    return rows[rows["step"] == step]


def _of_curves(one: Expectation, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of its optimizer, rule and alpha."""
    if table.empty:
        return table
    here = table["optimizer"].astype(object) == one.optimizer
    if one.p is not None:
        here &= np.isclose(table["exponent_p"].astype(float), one.p)
    for name in ("alpha", "eps", "lr"):
        wanted = getattr(one, name)
        if wanted is not None and name in table:
            here &= np.isclose(table[name].astype(float), wanted, rtol=1e-9, atol=0)
    return table[here]


def _at_lowest_rate(one: Expectation, rows: pd.DataFrame) -> pd.DataFrame:
    """Those at the lowest learning rate, unless the expectation names one."""
    return rows if one.lr is not None or rows.empty else rows[rows["lr"] == rows["lr"].min()]


def _one_per_curve(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Rows of p*, one for all rules of a setting, and the names of the settings."""
    if rows.empty:
        return rows, []
    rows = side_by_side(rows)
    names = distinguishing(rows, curve_columns(rows))
    return one_per_optimizer(one_per_measurement(rows, names), names), names


def _p_values(rows: Sequence[tuple[Expectation, Value]]) -> tuple[Floats, Floats]:
    """Of the tests that a row is within and outside its tolerance, corrected for all rows."""
    off, half, df, margin = np.array([*_distances(rows)], float).reshape(-1, 4).T
    with np.errstate(divide="ignore", invalid="ignore"):
        se = half / t_critical(df)
    return holm(tost(off, se, df, margin)), holm(beyond(off, se, df, margin))


def _distances(rows: Sequence[tuple[Expectation, Value]]) -> Iterator[tuple[float, ...]]:
    """Distance from the expected value, half the interval, degrees of freedom, and tolerance."""
    for one, row in rows:
        half = max(row["high"] - row["value"], row["value"] - row["low"])
        tested = row["seeds"] >= SEEDS_FOR_VERDICT and math.isfinite(half)
        df = row["seeds"] - 1 if tested else 0
        if one.what == FACTOR:
            expected, margin = math.log(one.predicted), math.log(one.tolerance)
            yield row["value"] * row["span"] - expected, half * row["span"], df, margin
        else:
            yield row["value"] - one.predicted, half, df, one.tolerance


def _displayed(one: Expectation, row: Value) -> tuple[float, float, float]:
    """The value and its interval, on the scale of the expectation."""
    values = row["value"], row["low"], row["high"]
    if one.what != FACTOR:
        return values
    value, low, high = (math.exp(slope * row["span"]) for slope in values)
    return value, low, high


def _word(row: Value, p_agrees: float, p_differs: float) -> str:
    if row["seeds"] == 0:
        return NOT_MEASURED
    if row["seeds"] == 1:
        return ONE_SEED
    if p_agrees <= SIGNIFICANCE:
        return AGREES
    return DIFFERS if p_differs <= SIGNIFICANCE else UNCLEAR
