"""Verdicts: does a quantity keep its size as the rank grows, and if not, how much does it change?

The margin is a factor of 1.5 from the lowest to the highest rank in every study. In units of the
slope, ``margin = ln(1.5) / ln(rank_max / rank_min)``. docs/measured.md has the tests, the groups
that are tested together, and the guarantees. :func:`summary` has the rows to read first.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import optimize, special

from study.analysis.fits import Floats, Ints, Mask
from study.analysis.grouping import CURVE_ID, RULE, numbered
from study.analysis.wording import curve_settings, interval_text
from study.vocabulary.quantities import (
    BACKWARD_IN,
    FORWARD_OUT,
    GRADIENT_NORM,
    HELDOUT,
    MODEL_WIDE,
    POOLINGS,
    PRIMARY,
    TRAIN,
    Quantity,
)
from study.vocabulary.scaling import rule_words
from study.vocabulary.thresholds import ROUNDING, SEEDS_FOR_VERDICT, SIGNIFICANCE, STABLE_RATIO
from study.vocabulary.verdicts import FALLS, GROWS, ONE_SEED, RISES, SHRINKS, STABLE, UNCLEAR
from study.vocabulary.verdicts import VERDICTS as WORDS

VERDICTS = tuple(WORDS)
FEWEST_VARIANCES = 4
"""The fewest rows whose variances are pooled. Fewer do not show how much variances differ."""


def rows_of(
    quantity: Quantity, exponents: pd.DataFrame, batch: str | None = TRAIN
) -> "pd.Series[bool]":
    """The rows of ``exponents`` that hold a quantity on a batch (None: any), at any step."""
    here = pd.Series(True, exponents.index) if batch is None else exponents["batch"] == batch
    for name in ("site", "stat", "kind", "layer"):
        here = here & (exponents[name] == getattr(quantity, name))
    return here


def with_verdicts(exponents: pd.DataFrame) -> pd.DataFrame:
    """``exponents``, the table of :func:`~study.analysis.exponents.fit_exponents`, with

    - ``factor``: the change of the line from the lowest to the highest rank;
    - ``p_stable``, ``p_slope``, ``p_beyond``, ``p_bent``: of the four tests, adjusted within the
      group; significant at 5 % or less. NaN for fewer than three seeds;
    - ``bent``: whether a straight line is rejected;
    - ``primary``: whether the row was among the study's questions before any run.
    """
    slope, se, df, low, high, seeds, bend, se_bend = (
        exponents[name].to_numpy(float)
        for name in (
            *("exponent", "se_slope", "df", "rank_min", "rank_max", "seeds"),
            *("curvature", "se_curvature"),
        )
    )
    span = np.log(high / low)
    with np.errstate(divide="ignore"):
        margin = math.log(STABLE_RATIO) / span
    curve = numbered(exponents, [CURVE_ID])
    primary = np.zeros(len(exponents), bool)
    for quantity in PRIMARY:
        rows = np.flatnonzero(rows_of(quantity, exponents))
        primary[rows] = at_primary_steps(quantity, exponents.iloc[rows])

    group = _groups(exponents, curve, primary)
    p_stable, p_slope, p_beyond, p_bent = (
        holm(np.where(seeds >= SEEDS_FOR_VERDICT, p_values, np.nan), group)
        for p_values in (
            tost(slope, se, df, margin),
            beyond(slope, se, df, 0.0),
            beyond(slope, se, df, margin),
            beyond(bend, se_bend, df, 0.0),
        )
    )
    down, moves, far = slope < 0, p_slope <= SIGNIFICANCE, p_beyond <= SIGNIFICANCE
    choices = {
        ONE_SEED: seeds == 1,
        SHRINKS: far & down,
        GROWS: far,
        STABLE: p_stable <= SIGNIFICANCE,
        FALLS: moves & down,
        RISES: moves,
    }
    codes = [VERDICTS.index(word) for word in choices]
    chosen = np.select(list(choices.values()), codes, VERDICTS.index(UNCLEAR))
    return exponents.assign(
        factor=np.exp(slope * span),
        margin=margin,
        p_stable=p_stable,
        p_slope=p_slope,
        p_beyond=p_beyond,
        p_bent=p_bent,
        bent=p_bent <= SIGNIFICANCE,
        primary=primary,
        verdict=pd.Categorical.from_codes(chosen.astype(np.int8), pd.Index(VERDICTS)),
    )


def tost(
    slope: npt.ArrayLike, se: npt.ArrayLike, df: npt.ArrayLike, margin: npt.ArrayLike
) -> Floats:
    """The p-value of the equivalence test ``|slope| < margin``."""
    return _tail(np.asarray(margin, float) - np.abs(np.asarray(slope, float)), se, df)


def beyond(
    slope: npt.ArrayLike, se: npt.ArrayLike, df: npt.ArrayLike, margin: npt.ArrayLike
) -> Floats:
    """The p-value of the test that ``|slope| > margin``; the usual two-sided one for a margin
    of 0."""
    return _tail(np.abs(np.asarray(slope, float)) - np.asarray(margin, float), se, df)


def _tail(distance: Floats, se: npt.ArrayLike, df: npt.ArrayLike) -> Floats:
    """Twice the probability that Student's t is above ``distance`` standard errors, at most 1."""
    se, df = np.asarray(se, float), np.asarray(df, float)
    with np.errstate(invalid="ignore"):
        p = 2 * special.stdtr(df, -distance / np.hypot(se, ROUNDING))
    return np.asarray(np.where(df > 0, np.minimum(p, 1.0), np.nan), float)


def holm(p_values: npt.ArrayLike, group: npt.ArrayLike | None = None) -> Floats:
    """Holm's step-down adjusted p-values (Holm 1979) within each ``group``, a label per p-value. So
    any false claim at 5 % has a probability of at most 5 %, under any dependence."""
    p = pd.Series(np.asarray(p_values, float))
    label = pd.Series(np.zeros(len(p)) if group is None else np.asarray(group))
    tested = p[np.isfinite(p)].sort_values()
    own = tested.groupby(label)
    left = own.transform("size") - own.cumcount()  # m, m - 1, ..., 1 in every group
    adjusted = (left * tested).clip(upper=1.0).groupby(label).cummax()
    return adjusted.reindex(p.index).to_numpy(float)


def moderated(variance: npt.ArrayLike, df: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Variances over seeds, each pooled with those of the other rows, and degrees of freedom.

    Empirical Bayes (Smyth 2004, section 6.2; limma): the true variances are drawn from a scaled
    inverse chi-squared distribution, whose parameters are estimated from the moments of the log
    variances. Rows with one variance are one measurement and count once. Fewer than
    :data:`FEWEST_VARIANCES`, and those that are 0 or NaN, stay as they are.
    """
    variance, df = np.asarray(variance, float), np.asarray(df, float)
    usable = np.isfinite(variance) & (variance > 0) & (df > 0)
    log_v, d = np.log(variance[usable]), df[usable]
    once = np.unique(np.round(log_v, 3), return_index=True)[1]
    if len(once) < FEWEST_VARIANCES:
        return variance, df
    half = d[once] / 2
    e = log_v[once] - special.psi(half) + np.log(half)
    # Few rows estimate the spread of the variances poorly. With the estimate itself, false verdicts
    # would be twice as frequent as allowed. So it is raised by one standard error.
    spread = e.var(ddof=1) * (1 + math.sqrt(2 / (len(e) - 1)))
    excess = spread - special.polygamma(1, half).mean()
    prior_df, log_prior = math.inf, float(e.mean())
    if excess > 0:  # the true variances differ: trigamma(prior_df / 2) = excess
        prior = optimize.brentq(lambda h: special.polygamma(1, h) - excess, 1e-6, 1e9)
        prior_df, log_prior = 2 * prior, float(e.mean() + special.psi(prior) - math.log(prior))
    weight = np.ones(len(d)) if math.isinf(prior_df) else prior_df / (prior_df + d)
    variance, df = variance.copy(), df.copy()
    variance[usable] = weight * math.exp(log_prior) + (1 - weight) * variance[usable]
    df[usable] = np.minimum(d + prior_df, d[once].sum())  # never more than all rows together have
    return variance, df


def _groups(exponents: pd.DataFrame, curve: Ints, primary: Mask) -> Ints:
    """A number per row, equal for the rows that are tested together."""
    pooled = exponents["layer"].isin([*POOLINGS, MODEL_WIDE]).to_numpy(bool)
    beside = numbered(exponents, ["batch", "step", "kind", "layer"], curve)
    along = numbered(exponents, ["batch", "step", "site", "stat"], curve)
    kind = np.select([primary, pooled], [0, 1], 2)
    number = np.select([primary, pooled], [curve, beside], along)
    return np.asarray(kind * (1 + number.max(initial=0)) + number)


def at_primary_steps(quantity: Quantity, rows: pd.DataFrame) -> Mask:
    """Which ``rows`` of a quantity on one batch are at its primary steps."""
    step = rows["step"].to_numpy()
    last = rows.groupby(CURVE_ID, observed=True)["step"].transform("max").to_numpy()
    at = [last if one == "last" else one for one in quantity.primary_at]
    return np.any([step == one for one in at], axis=0)


# What to read.

CONDITION: tuple[Quantity, ...] = (FORWARD_OUT, BACKWARD_IN, GRADIENT_NORM)
"""What must not depend on the rank at any step (Kalajdzievski 2023, Theorem 3.2): the outputs of an
adapter, and the gradients that it passes to its inputs. The gradient norm over all adapters (the
paper's Figure 3) is shown with them."""
BATCHES_OF = {FORWARD_OUT: (HELDOUT, TRAIN), BACKWARD_IN: (HELDOUT, TRAIN), GRADIENT_NORM: (TRAIN,)}
"""The batches on which each is read: the first one that the study probed. A held-out batch is fixed
and never trained on."""

SUMMARY_COLUMNS = (
    *("optimizer", *RULE, "rule", "curve", "site", "stat", "quantity"),
    *("over", "batch", "step", "primary"),
    *("exponent", "ci_low", "ci_high", "estimate", "factor", "predicted", "verdict"),
    *("bent", "slope_low", "slope_high"),
    *("p_stable", "p_slope", "p_beyond", "p_bent"),
    *("interval", "seeds", "ranks", "rank_min", "rank_max", "margin", "dropped"),
    *("layer_p05", "layer_p95"),
)


def summary(exponents: pd.DataFrame) -> pd.DataFrame:
    """The primary quantities at their primary steps and at the first and last step, as texts."""
    rows = _at_every_step(PRIMARY, exponents)
    return _described(rows[rows["fixed"] | rows["is_first"] | rows["is_last"]])


def condition_rows(exponents: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``exponents`` on the paper's condition, at the first and last step measured."""
    rows = _at_every_step(CONDITION, exponents)
    rows = rows[rows["is_first"] | rows["is_last"]]
    return rows.assign(curve=curve_settings(rows)).reset_index(drop=True)


def _at_every_step(quantities: Sequence[Quantity], exponents: pd.DataFrame) -> pd.DataFrame:
    """Quantities at every step, each on one batch. ``fixed``: whether the step is a primary one."""
    parts = []
    for place, quantity in enumerate(quantities):
        rows = rows_of_condition(quantity, exponents)
        fixed = at_primary_steps(quantity, rows)
        parts.append(rows.assign(place=place, noun=quantity.noun, fixed=fixed))
    rows = pd.concat(parts)
    order = exponents[CURVE_ID].unique()
    rows = rows.assign(curve_number=pd.Categorical(rows[CURVE_ID], order).codes)
    steps = rows.groupby(["curve_number", "place"])["step"]
    rows = rows.assign(
        is_first=rows["step"] == steps.transform("min"),
        is_last=rows["step"] == steps.transform("max"),
    )
    return rows.sort_values(["curve_number", "place", "step"], kind="stable")


def rows_of_condition(quantity: Quantity, exponents: pd.DataFrame) -> pd.DataFrame:
    """The rows of a quantity at any step; for each curve on the first of its batches that was
    probed. They are those of :data:`BATCHES_OF`, or the training batch."""
    rows = exponents[rows_of(quantity, exponents, batch=None)]
    batches = BATCHES_OF.get(quantity, (TRAIN,))
    rank = rows["batch"].map({name: n for n, name in enumerate(batches)}).astype(float)
    return rows[rank == rank.groupby(rows[CURVE_ID], observed=True).transform("min")]


def _described(rows: pd.DataFrame) -> pd.DataFrame:
    by_row = list(rows.itertuples(index=False))
    rows = rows.assign(
        rule=[rule_words(*rule) for rule in rows[list(RULE)].to_numpy()],
        curve=curve_settings(rows),
        quantity=[f"{row.site} {row.stat}" for row in by_row],
        over=[
            "whole model" if row.layer == MODEL_WIDE else f"mean over {row.layers} layers of log"
            for row in by_row
        ],
        estimate=list(map(interval_text, rows["exponent"], rows["ci_low"], rows["ci_high"])),
    )
    return rows[list(SUMMARY_COLUMNS)].reset_index(drop=True)
