"""The rows of ``exponents`` to read first, and those on the paper's own condition.

**The condition.** Kalajdzievski 2023 (Definition 3.1, Theorem 3.2): the outputs of an adapter, and
the gradients that it passes to its input, must not depend on the rank, at any step of training.
They are read on one fixed batch that is never trained on, if the study probed it; otherwise on the
training batch. The gradient norm over all adapters (the paper's Figure 3) is shown with them.
"""

from collections.abc import Sequence

import pandas as pd

from study.analysis.grouping import CURVE_ID, RULE, curve_columns, distinguishing
from study.analysis.verdicts import at_primary_steps, rows_of
from study.analysis.wording import interval_text, setting_labels
from study.vocabulary.quantities import (
    BACKWARD_IN,
    FORWARD_OUT,
    GRADIENT_NORM,
    HELDOUT,
    MODEL_WIDE,
    PRIMARY,
    TRAIN,
    Quantity,
)
from study.vocabulary.scaling import rule_words

CONDITION: tuple[Quantity, ...] = (FORWARD_OUT, BACKWARD_IN, GRADIENT_NORM)
"""What must not depend on the rank, in the order of the tables."""
BATCHES_OF = {FORWARD_OUT: (HELDOUT, TRAIN), BACKWARD_IN: (HELDOUT, TRAIN), GRADIENT_NORM: (TRAIN,)}
"""The batches on which each is read: the first one that the study probed."""

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
    rows = _rows_of(PRIMARY, exponents)
    return _described(rows[rows["fixed"] | rows["is_first"] | rows["is_last"]], exponents)


def condition_rows(exponents: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``exponents`` on the paper's condition, at the first and last step measured."""
    rows = _rows_of(CONDITION, exponents)
    rows = rows[rows["is_first"] | rows["is_last"]]
    return rows.assign(curve=_curve_texts(rows, exponents)).reset_index(drop=True)


def _rows_of(quantities: Sequence[Quantity], exponents: pd.DataFrame) -> pd.DataFrame:
    """Quantities at every step, each on one batch. ``fixed``: whether the step is a primary one."""
    parts = []
    for place, quantity in enumerate(quantities):
        rows = rows_of_condition(quantity, exponents)
        fixed = at_primary_steps(quantity, rows)
        parts.append(rows.assign(place=place, fixed=fixed))
    rows = pd.concat(parts)
    order = exponents[CURVE_ID].unique()
    rows = rows.assign(curve_number=pd.Categorical(rows[CURVE_ID], order).codes)
    steps = rows.groupby(["curve_number", "place"])["step"]
    rows = rows.assign(
        is_first=rows["step"] == steps.transform("min"),
        is_last=rows["step"] == steps.transform("max"),
    )
    return rows.sort_values(["curve_number", "place", "step"], kind="stable")


def _curve_texts(rows: pd.DataFrame, exponents: pd.DataFrame) -> list[str]:
    """By row the values that separate its curve from the others of ``rows``: ``lr=0.001``."""
    named = distinguishing(rows, curve_columns(exponents))
    return setting_labels(rows, named)


def rows_of_condition(quantity: Quantity, exponents: pd.DataFrame) -> pd.DataFrame:
    """The rows of a quantity at any step; for each curve on the first of its batches that was
    probed. They are those of :data:`BATCHES_OF`, or the training batch."""
    rows = exponents[rows_of(quantity, exponents, batch=None)]
    batches = BATCHES_OF.get(quantity, (TRAIN,))
    rank = rows["batch"].map({name: n for n, name in enumerate(batches)}).astype(float)
    return rows[rank == rank.groupby(rows[CURVE_ID], observed=True).transform("min")]


def _described(rows: pd.DataFrame, exponents: pd.DataFrame) -> pd.DataFrame:
    by_row = list(rows.itertuples(index=False))
    rows = rows.assign(
        rule=[rule_words(*rule) for rule in rows[list(RULE)].to_numpy()],
        curve=_curve_texts(rows, exponents),
        quantity=[f"{row.site} {row.stat}" for row in by_row],
        over=[
            "whole model" if row.layer == MODEL_WIDE else f"mean over {row.layers} layers of log"
            for row in by_row
        ],
        estimate=list(map(interval_text, rows["exponent"], rows["ci_low"], rows["ci_high"])),
    )
    return rows[list(SUMMARY_COLUMNS)].reset_index(drop=True)
