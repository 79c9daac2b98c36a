"""Verdicts: does a quantity stay stable as the rank grows? An equivalence test decides.

A missing slope does not prove stability. A quantity is **stable** if its exponent is shown to be
small: two one-sided t-tests at 5 % (TOST; Schuirmann 1987) reject exponents beyond +-margin. The
margin is the same ratio in every study: a stable quantity changes by less than a factor of 1.5 from
the lowest to the highest rank, so ``margin = ln(1.5) / ln(rank_max / rank_min)``. Otherwise the
quantity **collapses** or **explodes** if the whole 95 % interval is below or above zero. Everything
else is **unclear**, also a fit without an interval.

A thousand tests at 5 % give fifty false claims by chance. The few :data:`PRIMARY` quantities, fixed
before any run, are tested without correction. The others are tested with Holm's correction, within
families of rows that are read together: a pooled or model-wide row belongs with all sites and stats
of its curve, batch and step that are pooled the same way; the row of a layer belongs with the
layers of its quantity. A row that is stable only without the correction is unclear. Intervals are
pointwise.
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
    """The rows of ``exponents`` that hold a quantity, at any step, on the training batch."""
    here = exponents["batch"] == TRAIN
    for name in ("site", "stat", "kind", "layer"):
        here = here & (exponents[name] == getattr(quantity, name))
    return here


def with_verdicts(exponents: pd.DataFrame) -> pd.DataFrame:
    """``exponents`` with ``margin``, ``p_value``, ``p_holm``, ``primary`` and ``verdict``.

    ``exponents`` is the table of :func:`~study.analysis.exponents.fit_exponents`; it is not
    changed. ``margin``: of the exponent. ``p_value``: of the equivalence test. ``p_holm``:
    corrected, and decides the verdict; equal to ``p_value`` in primary rows. Both are NaN without
    an interval.
    """
    slope, se, df, low, high = (
        exponents[name].to_numpy(float)
        for name in ("exponent", "se_slope", "df", "rank_min", "rank_max")
    )
    with np.errstate(divide="ignore"):
        margin = math.log(STABLE_RATIO) / np.log(high / low)
    p_value = tost(slope, se, df, margin)

    curve = numbered(exponents, curve_columns(exponents))
    primary = _primary(exponents, curve)
    pooled = exponents["layer"].isin([*POOLINGS, MODEL_WIDE]).to_numpy(bool)
    beside = numbered(exponents, ["batch", "step", "kind", "layer"], curve)
    along = numbered(exponents, ["batch", "step", "site", "stat"], curve)
    family = np.where(pooled, beside, along + beside.max(initial=0) + 1)
    p_holm = np.where(primary, p_value, holm(np.where(primary, np.nan, p_value), family))

    # A row that is stable without the correction neither collapses nor explodes.
    sloped = p_value > SIGNIFICANCE
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
    """The p-value of the equivalence test ``|slope| < margin``.

    It is the larger of the p-values of two one-sided t-tests: that against the nearer bound. NaN
    where ``se`` is NaN or ``df`` is 0.
    """
    slope, se, df, margin = (np.asarray(values, float) for values in (slope, se, df, margin))
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (margin - np.abs(slope)) / se
        return np.asarray(np.where(df > 0, special.stdtr(df, -distance), np.nan), float)


def holm(p_values: npt.ArrayLike, family: npt.ArrayLike | None = None) -> Floats:
    """Holm's step-down adjusted p-values (Holm 1979) within each ``family``.

    ``family``: a label per p-value; None: all belong to one family. Among the adjusted values of a
    family up to 5 %, the probability of any false claim is at most 5 %, under any dependence. NaNs
    stay NaN and are not counted.
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
    """The rows of primary quantities at their primary steps."""
    primary = np.zeros(len(exponents), bool)
    step = exponents["step"].to_numpy()
    for quantity in PRIMARY:
        rows = np.flatnonzero(rows_of(quantity, exponents))
        last = pd.Series(step[rows]).groupby(curve[rows]).transform("max").to_numpy()
        for at in quantity.primary_at:
            primary[rows[step[rows] == (last if at == "last" else at)]] = True
    return primary
