"""p*: the exponent of gamma at which a quantity is flat in the rank, per optimizer, quantity, step, layer and kind.

At steps 0 and 1 every slope is exactly linear in p with a known integer factor k (gamma enters a gradient once, an SGD
update once more), so one rule tells p*: ``p* = p + slope / k``. From step 2 on, p* is where the slopes measured on a
grid of p cross zero. Two readings of the same measurement stand side by side:

- ``p_star``: flat over the ranks that were measured, to be compared with ``predicted``, theory's own for those ranks;
- ``p_star_limit``: what remains when the finite-rank curve's bend is taken off, to be compared with ``limit``, theory's
  as r grows. Only where there is a prediction.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from study.analysis.curves import curve_columns
from study.inits import INITS
from study.sites import MODEL_WIDE
from study.theory import FAMILIES, predict, stable_exponent

LINEAR_UNTIL = 1
"""The last step at which slopes are exactly linear in p."""

FEW_SEEDS = 5
"""Under this many seeds an interval over seeds is too wide to lean on; the table says so in ``few_seeds``."""

QUANTITIES = {
    "adapter_update": ("descent",),
    "adapter_grad": ("norm",),
    "adapter_out": ("rms",),
    "adapter_in_grad": ("rms",),
    "delta_w": ("norm",),
}
"""What p* is given for, ``descent`` first: it alone has no crossover in the rank under any optimizer."""


def stable_exponents(exponents: pd.DataFrame) -> pd.DataFrame:
    """One row per curve, quantity, batch, step, layer and kind: ``p_star`` with its 95 % interval, ``predicted``,
    ``p_star_limit`` with its interval, ``limit``, ``method`` (``linear`` or ``grid``), ``seeds``, ``ranks``,
    ``rank_min``, ``rank_max``, ``few_seeds``.

    ``exponents`` needs its ``predicted`` column for the finite-rank readings. A grid needs at least two values of p
    that bracket zero; its interval is where the slopes' own bounds cross it.
    """
    wanted = np.zeros(len(exponents), bool)
    for site, stats in QUANTITIES.items():
        wanted |= ((exponents["site"] == site) & exponents["stat"].isin(stats)).to_numpy()
    wanted &= exponents["optimizer"].isin(FAMILIES).to_numpy()
    rows = exponents[wanted]
    early = rows["step"] <= LINEAR_UNTIL
    found = [part for part in (_linear(rows[early]), _grid(rows[~early])) if len(part)]
    if not found:
        return pd.DataFrame()
    table = pd.concat(found, ignore_index=True)
    place = {site: n for n, site in enumerate(QUANTITIES)}
    order = [*_keys(table), "step", "layer"]
    return (
        table.assign(place=table["site"].astype(str).map(place), few_seeds=table["seeds"] < FEW_SEEDS)
        .sort_values(["place", *order], kind="stable")
        .drop(columns="place")
        .reset_index(drop=True)
    )


def _keys(rows: pd.DataFrame) -> list[str]:
    return [name for name in curve_columns(rows) if name in ("model", "data", "optimizer", "init", "targets", "lr")]


def _linear(rows: pd.DataFrame) -> pd.DataFrame:
    """``p* = p + slope / k``, row by row."""
    theory = _once(rows, lambda **key: _factor(**key))
    factor = np.array([k for k, _ in theory], float)
    limit = np.array([p for _, p in theory], float)
    rows, factor, limit = rows[factor > 0], factor[factor > 0], limit[factor > 0]
    p = rows["exponent_p"].to_numpy(float)
    predicted = p + rows["predicted"].to_numpy(float) / factor
    bend = predicted - limit  # how far the finite-rank curve's p* is from the asymptote's
    p_star, low, high = (p + rows[name].to_numpy(float) / factor for name in ("exponent", "ci_low", "ci_high"))
    return rows[_identity(rows)].assign(
        method="linear",
        p_star=p_star,
        ci_low=low,
        ci_high=high,
        predicted=predicted,
        p_star_limit=p_star - bend,
        limit_low=low - bend,
        limit_high=high - bend,
        limit=limit,
    )


def _factor(*, site: str, stat: str, step: int, optimizer: str, init: str) -> tuple[float, float]:
    """How much steeper a slope gets per unit of p, and theory's p* as r grows; NaN without a prediction."""
    how = INITS[init]
    if how.q is None:
        return math.nan, math.nan
    at = [
        predict(site, stat, step=step, optimizer=optimizer, p=p, q=how.q, init=how.drawn).exponent for p in (0.0, 1.0)
    ]
    star = stable_exponent(site, stat, step=step, optimizer=optimizer, q=how.q, init=how.drawn)
    if at[0] is None or at[1] is None or star is None:
        return math.nan, math.nan
    return at[0] - at[1], star


def _grid(rows: pd.DataFrame) -> pd.DataFrame:
    """Where the slopes over a grid of p cross zero, by linear interpolation; a row per grid that brackets it."""
    same = [name for name in _identity(rows) if name not in ("scaling", "exponent_p", "seeds", "ranks", "lazy")]
    grid = rows.groupby(same, dropna=False, observed=True, sort=False).ngroup().to_numpy()
    p_P = np.unique(rows["exponent_p"].to_numpy(float))
    if len(p_P) < 2:
        return pd.DataFrame()
    place = grid, np.searchsorted(p_P, rows["exponent_p"].to_numpy(float))
    slope, low, high = (np.full((grid.max() + 1, len(p_P)), np.nan) for _ in range(3))
    for table, name in ((slope, "exponent"), (low, "ci_low"), (high, "ci_high")):
        table[place] = rows[name].to_numpy(float)
    first = rows[~pd.Series(grid, rows.index).duplicated()][_identity(rows)].reset_index(drop=True)
    found = first.assign(
        scaling="power",
        exponent_p=math.nan,
        method="grid",
        p_star=_crossings(p_P, slope),
        ci_low=_crossings(p_P, low),  # a falling slope's lower bound crosses zero first
        ci_high=_crossings(p_P, high),
        seeds=rows["seeds"].groupby(grid).min().to_numpy(),
    )
    return found.dropna(subset=["p_star"])


def _crossings(p_P: npt.NDArray[np.float64], slope_GP: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The p at which each row falls through zero, between the two neighbours that bracket it; NaN where none do."""
    here, after = slope_GP[:, :-1], slope_GP[:, 1:]
    brackets = (here >= 0) & (after < 0)
    i = brackets.argmax(axis=1)
    row = np.arange(len(slope_GP))
    with np.errstate(invalid="ignore", divide="ignore"):
        part = here[row, i] / (here[row, i] - after[row, i])
    return np.where(brackets.any(axis=1), p_P[i] + part * (p_P[i + 1] - p_P[i]), np.nan)


def _identity(rows: pd.DataFrame) -> list[str]:
    fit = ("site", "stat", "batch", "step", "kind", "layer", "block", "seeds", "ranks", "rank_min", "rank_max")
    lazy = [name for name in ("lazy",) if name in rows]
    return [*curve_columns(rows), *fit, *lazy]


def _once(rows: pd.DataFrame, ask: Callable[..., tuple[float, float]]) -> list[tuple[float, float]]:
    """``ask`` of every row, computed once per distinct question."""
    names = ["site", "stat", "step", "optimizer", "init"]
    known: dict[tuple[Any, ...], tuple[float, float]] = {}
    answers = []
    for key in rows[names].astype({name: str for name in names if name != "step"}).itertuples(index=False, name=None):
        if key not in known:
            known[key] = ask(**dict(zip(names, key, strict=True)))
        answers.append(known[key])
    return answers


def first_to_read(stable: pd.DataFrame) -> pd.DataFrame:
    """The rows over the whole model on the training batch: model-wide where measured so, else the mean over layers."""
    if stable.empty:
        return stable
    model_wide = stable["layer"] == MODEL_WIDE
    pooled = (
        (stable["layer"] == "mean_log")
        & (stable["kind"] == "all")
        & ~stable["site"].isin(stable.loc[model_wide, "site"].unique())
    )
    return stable[(stable["batch"] == "train") & (model_wide | pooled)].reset_index(drop=True)
