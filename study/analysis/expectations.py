"""Expectations compared with measurements, each with a verdict by equivalence.

An expectation (:mod:`study.config.expectations`) has a row for every curve that it matches.
docs/intervals.md has the tests. A factor is compared as its logarithm. The interval of a p* from
several rules need not be symmetric; its longer half counts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from study.analysis.capacity import capacity
from study.analysis.distances import of_cells
from study.analysis.fits import t_critical
from study.analysis.grouping import RULE, curve_columns, distinguishing
from study.analysis.losses import loss_differences, loss_gaps
from study.analysis.rates import NORMAL, alpha_gaps, alpha_transfer, best_alphas, rate_transfer
from study.analysis.stable import one_per_measurement, one_per_optimizer, side_by_side
from study.analysis.verdicts import beyond, holm, moderated, tost
from study.analysis.wording import setting_labels
from study.config.expectations import (
    ALPHA_GAP,
    BEST_ALPHA,
    BEST_RATE,
    CAPACITY,
    DIFFERENCE,
    DISTANCE,
    FACTOR,
    LAST,
    LOSS_GAP,
    NEEDS,
    NOT_MEASURED,
    P_STAR,
    P_STAR_LIMIT,
    PER_PARAMETER,
    SLOPE,
    Expectation,
)
from study.store import StudyTables
from study.vocabulary.scaling import rule_label
from study.vocabulary.thresholds import SEEDS_FOR_VERDICT, SIGNIFICANCE
from study.vocabulary.verdicts import AGREES, DIFFERS, ONE_SEED, UNCLEAR

COLUMNS_OF = {
    P_STAR: ("p_star", "ci_low", "ci_high"),
    P_STAR_LIMIT: ("p_star_limit", "limit_low", "limit_high"),
    **dict.fromkeys((LOSS_GAP, ALPHA_GAP, DIFFERENCE), ("gap", "ci_low", "ci_high")),
    **dict.fromkeys(
        (SLOPE, FACTOR, BEST_RATE, BEST_ALPHA, DISTANCE, CAPACITY),
        ("exponent", "ci_low", "ci_high"),
    ),
    PER_PARAMETER: ("per_parameter", "bits_low", "bits_high"),
}


@dataclass(frozen=True)
class Compared:
    """An expectation with one curve that it is about.

    - ``curve``: the rule, if the expectation names none, and the settings that separate the curve
      from others of the study, as text;
    - ``step``: at which it was measured, None for a best rate;
    - ``off``, ``margin``: measured minus expected, and the tolerance; logarithms of a factor;
    - ``sd``, ``df``: the standard deviation over seeds, pooled over rows. ``own_df``: that of the
      row alone, 0 without a verdict. ``grid``: the standard error that all seeds share.
    """

    expectation: Expectation
    curve: str
    measured: float
    low: float
    high: float
    seeds: int
    step: int | None
    verdict: str
    off: float = math.nan
    margin: float = math.nan
    sd: float = math.nan
    df: float = 0.0
    own_df: float = 0.0
    grid: float = 0.0


Value = dict[str, Any]
_NOTHING: Value = dict.fromkeys(("value", "low", "high", "span"), math.nan)
_NOTHING |= {"curve": "", "seeds": 0, "step": None, "se_grid": 0.0}


def compare(expectations: Sequence[Expectation], tables: StudyTables) -> list[Compared]:
    """A row for each curve that an expectation matches; without one, a row ``not measured``."""
    found = {what: _table(what, tables) for what in {one.what for one in expectations}}
    rows: list[tuple[Expectation, Value]] = []
    for one in expectations:
        table = found[one.what]
        if one.what == DIFFERENCE:
            table = loss_differences(tables.cells, tables.metrics, one)
        rows += [(one, row) for row in _measured(one, table, tables.exponents) or [_NOTHING]]
    is_factor = np.array([one.what == FACTOR for one, _ in rows], bool)
    value, low, high, span, grid, seeds = (
        np.array([row[name] for _, row in rows], float)
        for name in ("value", "low", "high", "span", "se_grid", "seeds")
    )
    expected = np.array([(one.predicted, one.tolerance) for one, _ in rows], float).reshape(-1, 2)
    expected[is_factor] = np.log(expected[is_factor])
    span = np.where(is_factor, span, 1.0)
    value, half, grid = value * span, np.maximum(high - value, value - low) * span, grid * span
    own_df = np.where((seeds >= SEEDS_FOR_VERDICT) & np.isfinite(half), seeds - 1, 0.0)
    kinds = np.array([one.what for one, _ in rows])
    with np.errstate(divide="ignore", invalid="ignore"):
        of_seeds = np.maximum(half**2 - (NORMAL * grid) ** 2, 0) / t_critical(own_df) ** 2
        variance, df = seeds * of_seeds, own_df.copy()  # of one seed
        for kind in np.unique(kinds):
            mine = kinds == kind
            variance[mine], df[mine] = moderated(variance[mine], df[mine])
        se = np.hypot(np.sqrt(variance / seeds), NORMAL * grid / t_critical(df))
    off, margin = value - expected[:, 0], expected[:, 1]
    agrees, differs = holm(tost(off, se, df, margin)), holm(beyond(off, se, df, margin))
    tests = {"off": off, "margin": margin, "sd": np.sqrt(variance)}
    tests |= {"df": df, "own_df": own_df, "grid": grid}
    compared = []
    for n, (one, row) in enumerate(rows):
        shown: list[Any] = [row["value"], row["low"], row["high"]]
        if one.what == FACTOR:
            shown = [math.exp(x * row["span"]) for x in shown]
        differ = DIFFERS if differs[n] <= SIGNIFICANCE else UNCLEAR
        word = AGREES if agrees[n] <= SIGNIFICANCE else differ
        word = {0: NOT_MEASURED, 1: ONE_SEED}.get(row["seeds"], word)
        shown += [row["seeds"], row["step"], word]
        of_row: dict[str, Any] = {name: float(values[n]) for name, values in tests.items()}
        compared.append(Compared(one, row["curve"], *shown, **of_row))
    return compared


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
    if what in (CAPACITY, PER_PARAMETER):
        return capacity(tables)
    if what == DISTANCE:
        return of_cells(tables.cells, tables.distances)
    return tables.exponents


def _measured(one: Expectation, table: pd.DataFrame, exponents: pd.DataFrame) -> list[Value]:
    """The value and interval of every curve that an expectation is about."""
    value, low, high = COLUMNS_OF[one.what]
    found = _rows_about(one, table)
    if found.empty or value not in found:
        return []
    stable = one.what in (P_STAR, P_STAR_LIMIT)
    if one.what in (ALPHA_GAP, DIFFERENCE):
        known = ["rank", "alpha", "lr", "steps"]
    elif one.what in (BEST_RATE, BEST_ALPHA, CAPACITY, PER_PARAMETER):
        known = curve_columns(found)
    else:
        if one.lr is None:  # those at the lowest learning rate
            found = found[found["lr"] == found["lr"].min()]
        found = side_by_side(found) if stable else found
        known = curve_columns(found if stable else exponents)
    names = distinguishing(found, [name for name in known if name in found])
    if stable:  # one for all rules of a setting
        found = one_per_optimizer(one_per_measurement(found, names), names)
    found = found[found[value].notna()]
    rows = []
    labels = setting_labels(found, names)
    for row, setting in zip(found.to_dict("records"), labels, strict=True):
        rule = ""
        if one.rule is None and not stable:
            p = row["exponent_p"]
            rule = rule_label(*(row[name] for name in RULE)) if pd.isna(p) else f"p={p:g}"
        measured: Value = {
            "curve": ", ".join(filter(None, (rule, setting))),
            "value": float(row[value]),
            "low": float(row[low]),
            "high": float(row[high]),
            "span": math.log(float(row["rank_max"]) / float(row["rank_min"])),
            "seeds": int(row["seeds"]),
            "se_grid": float(row.get("se_grid", 0.0)),
            "step": int(row["step"]) if "step" in NEEDS[one.what] else None,
        }
        rows.append(measured)
    return rows


def _rows_about(one: Expectation, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of its quantity and step, if it has these, and of its optimizer, rule and rates."""
    if table.empty:
        return table
    rows, needs = table, {*NEEDS[one.what]}
    if "step" in needs:
        for name, value in one.place.items() if {"site", "measure"} & needs else ():
            rows = rows[rows[name].astype(object) == value]
        rows = rows[rows["step"] == (rows["step"].max() if one.step == LAST else one.step)]
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
