"""p*: the exponent of gamma at which a quantity does not change with rank (docs/measured.md).

Two estimates come from the same measurement:

- ``p_star``: over the ranks measured; compare with ``predicted``, theory's p* for those ranks;
- ``p_star_limit``: corrected for finite rank, by the difference between the p* of the finite-rank
  curve and that of its asymptote; compare with ``limit``, theory's p* for large rank. NaN without a
  prediction.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from study.analysis.fits import Floats
from study.analysis.grouping import curve_columns, numbered
from study.analysis.predictions import adjustments
from study.theory import Modifiers, power_of_gamma, stable_exponent
from study.theory.asymptotics import CLIPS
from study.vocabulary import thresholds
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.quantities import (
    ALL_KINDS,
    MEAN_LOG,
    MODEL_WIDE,
    QUANTITIES,
    TRAIN,
    UNIONS,
    UPDATES,
)

QUANTITY = ["site", "stat", "batch", "step", "kind", "layer"]
FIT = ["interval", "seeds", "ranks", "rank_min", "rank_max"]
CONDITIONS = ["lazy", "clipped", "eps_ratio"]
"""What predictions depend on."""
OF_LINES = (
    *("predicted", "p_star_limit", "limit_low", "limit_high", "limit"),
    *("layer_p05", "layer_median", "layer_p95"),
)
"""The columns that only an estimate by the method ``linear`` fills."""
EVERY_OPTIMIZER = "every optimizer"


def stable_exponents(exponents: pd.DataFrame) -> pd.DataFrame:
    """One row per curve, quantity, batch, step, layer and kind.

    ``exponents`` is the table of :func:`~study.analysis.predictions.with_predictions`. Columns:

    - ``p_star``, ``predicted``, ``p_star_limit`` and ``limit``, with 95 % intervals;
    - ``method``: ``linear`` or ``grid``. A grid needs two values of p whose slopes bracket zero.
      Its interval is where the bounds of the slopes cross zero (NaN if they do not);
    - ``layer_p05``, ``layer_median``, ``layer_p95``: quantiles of the ``p_star`` of single layers,
      in the ``mean_log`` row over all kinds.
    """
    place = {(q.site, q.stat): q.p_star for q in QUANTITIES if q.p_star is not None}
    pairs = zip(exponents["site"], exponents["stat"], strict=True)
    here = np.array([pair in place for pair in pairs], bool) & exponents["exponent_p"].notna()
    rows = exponents[here & exponents["optimizer"].isin(list(OPTIMIZERS))]
    step, lazy = rows["step"].to_numpy(int), rows["lazy"].to_numpy(float)
    still_lazy = (step <= thresholds.LAST_PREDICTED_STEP) & (lazy == 1)
    linear = (step <= thresholds.LINEAR_UNTIL) | still_lazy
    found = [part for part in (_linear(rows[linear]), _grid(rows[~linear])) if len(part)]
    if not found:
        return pd.DataFrame()
    table = pd.concat(found, ignore_index=True)
    # An estimate from a grid has no prediction. If there is no other, these columns are missing.
    table = table.reindex(columns=list(dict.fromkeys([*table, *OF_LINES])))
    places = [place[pair] for pair in zip(table["site"], table["stat"], strict=True)]
    table = table.assign(place=places)
    sorted_by = ("model", "data", "optimizer", "init", "targets", "lr")
    keys = [name for name in curve_columns(table) if name in sorted_by]
    table = table.sort_values(["place", *keys, "step", "layer"], kind="stable")
    return table.drop(columns="place").reset_index(drop=True)


def _linear(rows: pd.DataFrame) -> pd.DataFrame:
    """``p* = p + slope / k``, row by row. ``k`` and theory's p* are computed once per distinct
    question."""
    ratio = rows["eps_ratio"].to_numpy(float)
    # Below its eps, Adam is linear.
    regimes = [ratio <= thresholds.LINEAR_UP_TO, ratio >= thresholds.SIGN_LIKE_FROM]
    asked = rows[["site", "stat", "optimizer", "init", "clipped", "step"]].assign(
        adjust=adjustments(rows), eps_ratio=np.select(regimes, [0.0, math.inf], 1.0)
    )
    number = numbered(asked, asked.columns)
    answers = [_factor(one) for one in asked[~pd.Index(number).duplicated()].to_dict("records")]
    factor, limit = np.array(answers, float).reshape(-1, 2)[number].T
    rows, factor, limit = rows[factor > 0], factor[factor > 0], limit[factor > 0]
    p = rows["exponent_p"].to_numpy(float)
    names = ("predicted", "exponent", "ci_low", "ci_high")
    predicted, p_star, low, high = (p + rows[name].to_numpy(float) / factor for name in names)
    bend = predicted - limit  # between the p* of the finite-rank curve and of its asymptote
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
        **{
            name: p + rows[name].to_numpy(float) / factor
            for name in ("layer_p05", "layer_median", "layer_p95")
        },
    )


def _factor(asked: Mapping[Any, Any]) -> tuple[float, float]:
    """k, the change of a slope per unit of p, and theory's p* for large rank; or NaN."""
    init, optimizer = INITS.get(str(asked["init"])), str(asked["optimizer"])
    if init is None or init.q is None or optimizer not in OPTIMIZERS:
        return math.nan, math.nan
    place = str(asked["site"]), str(asked["stat"])
    law: dict[str, Any] = {"step": int(asked["step"]), "optimizer": optimizer}
    law |= {"q": init.q, "init": init.drawn}
    # In all of QUANTITIES the effect of decay is of the next order in the learning rate.
    law["modifiers"] = Modifiers(
        clip=str(asked["clipped"]), eps_ratio=asked["eps_ratio"], adjust=str(asked["adjust"])
    )
    factor, star = power_of_gamma(*place, **law), stable_exponent(*place, **law)
    return (math.nan, math.nan) if star is None else (factor, star)


def _grid(rows: pd.DataFrame) -> pd.DataFrame:
    """p* where the slopes over a grid of p cross zero, by linear interpolation, if they do."""
    may_differ = ("scaling", "exponent_p", "interval", "seeds", "ranks", *CONDITIONS)
    grid = numbered(rows, [name for name in _identity(rows) if name not in may_differ])
    p_P = np.unique(rows["exponent_p"].to_numpy(float))
    if len(p_P) < 2:
        return pd.DataFrame()
    place = grid, np.searchsorted(p_P, rows["exponent_p"].to_numpy(float))
    slope, low, high = (np.full((grid.max() + 1, len(p_P)), np.nan) for _ in range(3))
    for table, name in ((slope, "exponent"), (low, "ci_low"), (high, "ci_high")):
        table[place] = rows[name].to_numpy(float)
    first = rows.loc[~pd.Index(grid).duplicated(), _identity(rows)].reset_index(drop=True)
    clipped = rows["clipped"].cat.codes.groupby(grid).agg(["min", "max"])
    same = np.array(CLIPS, object)[clipped["min"]]
    fewest = rows["seeds"].groupby(grid).idxmin().to_numpy()
    of_grid = rows["lazy"].groupby(grid)
    lazy = of_grid.min()  # of all rules: unknown if one is, except if another was not lazy
    known = (of_grid.count() == of_grid.size()) | (lazy == 0)
    found = first.assign(
        scaling="power",
        exponent_p=math.nan,
        method="grid",
        p_star=_crossings(p_P, slope),
        ci_low=_crossings(p_P, low),  # slopes fall with p, so the lower bound crosses first
        ci_high=_crossings(p_P, high),
        **{name: rows.loc[fewest, name].to_numpy() for name in ("interval", "seeds", "ranks")},
        lazy=np.where(known, lazy, np.nan),
        clipped=np.where(clipped["min"] == clipped["max"], same, "some"),
        eps_ratio=rows["eps_ratio"].groupby(grid).min().to_numpy(),
    )
    return found.dropna(subset=["p_star"])


def _crossings(p_P: Floats, slope_GP: Floats) -> Floats:
    """The p at which each row crosses zero from above; NaN if no two neighbours bracket zero."""
    here, after = slope_GP[:, :-1], slope_GP[:, 1:]
    brackets = (here >= 0) & (after < 0)
    i = brackets.argmax(axis=1)
    row = np.arange(len(slope_GP))
    with np.errstate(invalid="ignore", divide="ignore"):
        part = here[row, i] / (here[row, i] - after[row, i])
    return np.where(brackets.any(axis=1), p_P[i] + part * (p_P[i + 1] - p_P[i]), np.nan)


def _identity(rows: pd.DataFrame) -> list[str]:
    """The columns that a row of p* takes over from ``exponents``."""
    return [*curve_columns(rows), *QUANTITY, "block", *FIT, *CONDITIONS]


# What to read.


def first_to_read(stable: pd.DataFrame) -> pd.DataFrame:
    """The rows for the whole model, or the mean over layers, on the training batch."""
    if stable.empty:
        return stable
    model_wide = stable["layer"] == MODEL_WIDE
    per_layer = ~stable["site"].isin(stable.loc[model_wide, "site"].unique())
    pooled = (stable["layer"] == MEAN_LOG) & (stable["kind"] == ALL_KINDS) & per_layer
    return stable[(stable["batch"] == TRAIN) & (model_wide | pooled)].reset_index(drop=True)


def shared_at_step_0(stable: pd.DataFrame) -> pd.DataFrame:
    """``stable``, in which optimizers with the same p* at step 0 share a row."""
    if stable.empty:
        return stable
    unions = [name for name, parts in UNIONS.items() if set(parts) <= set(UPDATES)]
    early = (stable["step"] == 0) & ~stable["site"].isin([*UPDATES, *unions])
    keys = ["site", "stat", "batch", "kind", "layer", "method", "scaling", "exponent_p"]
    keys += [name for name in ("study", "model", "data", "init") if name in stable]
    number = numbered(stable, [*keys, "rank_min", "rank_max", "p_star", "ci_low"])
    number = np.where(early, number, number.max() + 1 + np.arange(len(stable)))
    optimizer = stable["optimizer"].astype(object)
    several = optimizer.groupby(number).transform("nunique") > 1
    repeated = several & pd.Series(number, stable.index).duplicated()
    rows = stable.assign(optimizer=optimizer.where(~several, EVERY_OPTIMIZER))
    return rows[~repeated].reset_index(drop=True)


def one_per_optimizer(rows: pd.DataFrame, settings: Sequence[str]) -> pd.DataFrame:
    """One row per quantity and step: the rule with the narrowest interval, of those with small
    steps if any; of equal ones, the first."""
    lazy = -rows["lazy"].fillna(0.0).to_numpy(float)
    width = (rows["ci_high"] - rows["ci_low"]).fillna(np.inf).round(3).to_numpy(float)
    same = numbered(rows, ["optimizer", "site", "stat", "step", *settings])
    best_first = np.lexsort((width, lazy, same))
    return rows.iloc[sorted(best_first[~pd.Index(same[best_first]).duplicated()])]
