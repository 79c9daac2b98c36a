"""Verdicts: is a quantity stable in the rank? Answered by a test that can say so, never by failing to find a slope.

A quantity is **stable** when its exponent is shown to be small: two one-sided t-tests at 5 % (TOST; Schuirmann 1987)
reject that it lies beyond +-margin. The margin is a ratio, the same for every study: a quantity is stable that changes
by less than a factor of 1.5 from the lowest rank to the highest, so ``margin = ln(1.5) / ln(rank_max / rank_min)``.
Otherwise it **collapses** or **explodes** where the whole 95 % interval is below or above zero, and anything else, no
interval included, is **unclear**.

A table of a thousand tests at 5 % claims fifty by chance. The few :data:`PRIMARY` quantities, fixed before any run, are
tested as they stand. The others are tested with Holm's correction over what is read side by side: a pooled or
model-wide row among all sites and stats of its curve, batch and step pooled the same way; a layer's row among the
layers of its quantity. What is stable alone but not after the correction is unclear. Intervals stay pointwise.
"""

import math

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special

from study.analysis.fits import Floats, Ints, Mask
from study.analysis.grouping import curve_columns, numbered
from study.vocabulary.quantities import MODEL_WIDE, POOLINGS, PRIMARY, TRAIN, Quantity
from study.vocabulary.thresholds import SIGNIFICANCE, STABLE_RATIO

VERDICTS = ("stable", "collapses", "explodes", "unclear")


def rows_of(quantity: Quantity, exponents: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows of ``exponents`` hold a quantity, at any step, on the training batch."""
    here = exponents["batch"] == TRAIN
    for name in ("site", "stat", "kind", "layer"):
        here = here & (exponents[name] == getattr(quantity, name))
    return here


def with_verdicts(exponents: pd.DataFrame) -> pd.DataFrame:
    """``exponents`` (from :func:`~study.analysis.exponents.fit_exponents`) with ``margin``, ``p_value``, ``p_holm``,
    ``primary`` and ``verdict``.

    ``margin`` is on the exponent; ``p_value`` is the equivalence test's, ``p_holm`` what the verdict goes by (the same
    in primary rows). Both are NaN where there is no interval. The frame passed in is left as it is.
    """
    slope = exponents["exponent"].to_numpy(float)
    with np.errstate(divide="ignore"):
        margin = math.log(STABLE_RATIO) / np.log(
            exponents["rank_max"].to_numpy(float) / exponents["rank_min"].to_numpy(float)
        )
    p_value = tost(
        slope, exponents["se_slope"].to_numpy(float), exponents["df"].to_numpy(float), margin
    )

    curve = numbered(exponents, curve_columns(exponents))
    primary = _primary(exponents, curve)
    pooled = exponents["layer"].isin([*POOLINGS, MODEL_WIDE]).to_numpy(bool)
    beside = numbered(exponents, ["batch", "step", "kind", "layer"], curve)
    along = numbered(exponents, ["batch", "step", "site", "stat"], curve)
    family = np.where(pooled, beside, along + beside.max(initial=0) + 1)
    p_holm = np.where(primary, p_value, holm(np.where(primary, np.nan, p_value), family))

    sloped = p_value > SIGNIFICANCE  # what alone would pass for stable is not called anything else
    verdict = np.select(
        [
            p_holm <= SIGNIFICANCE,
            sloped & (exponents["ci_high"] < 0).to_numpy(bool),
            sloped & (exponents["ci_low"] > 0).to_numpy(bool),
        ],
        [0, 1, 2],
        default=3,
    )
    return exponents.assign(
        margin=margin,
        p_value=p_value,
        p_holm=p_holm,
        primary=primary,
        verdict=pd.Categorical.from_codes(verdict.astype(np.int8), pd.Index(VERDICTS)),
    )


def tost(
    slope: npt.ArrayLike, se: npt.ArrayLike, df: npt.ArrayLike, margin: npt.ArrayLike
) -> Floats:
    """The p-value of the equivalence test ``|slope| < margin``: the larger of its two one-sided t-tests'.

    Which is the one against the nearer bound. NaN where ``se`` is NaN or ``df`` is 0.
    """
    slope, se, df, margin = (np.asarray(values, float) for values in (slope, se, df, margin))
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (margin - np.abs(slope)) / se
        return np.asarray(np.where(df > 0, special.stdtr(df, -distance), np.nan), float)


def holm(p_values: npt.ArrayLike, family: npt.ArrayLike | None = None) -> Floats:
    """Holm's step-down adjusted p-values (Holm 1979) within each ``family`` (labels; None: one family).

    A family's adjusted values that are at most 5 % contain a false one with probability at most 5 %, whatever the
    dependence. NaNs stay NaN and are not counted.
    """
    p = np.asarray(p_values, float)
    label = np.zeros(p.shape, np.intp) if family is None else np.asarray(family)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.lexsort((p[tested], label[tested]))]
    label, p_sorted = label[order], p[order]
    start = np.flatnonzero(np.r_[True, label[1:] != label[:-1]][: len(label)])
    size = np.diff(np.append(start, len(label)))
    left = np.repeat(start + size, size) - np.arange(len(label))  # m, m - 1, ..., 1 in every family
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = pd.Series(np.minimum(left * p_sorted, 1.0)).groupby(label).cummax()
    return adjusted


def _primary(exponents: pd.DataFrame, curve: Ints) -> Mask:
    primary = np.zeros(len(exponents), bool)
    step = exponents["step"].to_numpy()
    for quantity in PRIMARY:
        rows = np.flatnonzero(rows_of(quantity, exponents))
        last = pd.Series(step[rows]).groupby(curve[rows]).transform("max").to_numpy()
        for at in quantity.primary_at:
            primary[rows[step[rows] == (last if at == "last" else at)]] = True
    return primary
