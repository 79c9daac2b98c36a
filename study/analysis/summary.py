"""The rows of ``exponents`` to read first."""

import pandas as pd

from study.analysis.grouping import curve_columns, distinguishing, numbered
from study.analysis.rank_stabilized import rows_of_condition
from study.analysis.verdicts import at_primary_steps
from study.analysis.wording import interval_text, setting_text
from study.vocabulary.quantities import MODEL_WIDE, PRIMARY
from study.vocabulary.scaling import RULES

SUMMARY_COLUMNS = (
    *("optimizer", "scaling", "exponent_p", "rule", "curve", "site", "stat", "quantity"),
    *("over", "batch", "step", "primary"),
    *("exponent", "ci_low", "ci_high", "estimate", "factor", "predicted", "verdict"),
    *("bent", "slope_low", "slope_high"),
    *("p_stable", "p_slope", "p_beyond", "p_bent"),
    *("interval", "seeds", "ranks", "rank_min", "rank_max", "margin", "dropped"),
    *("layer_p05", "layer_p95"),
)


OVER_MODEL = "whole model"
"""The value of ``over`` in rows measured over the whole model."""


def summary(exponents: pd.DataFrame) -> pd.DataFrame:
    """The primary quantities at their primary steps and at the first and last step measured.

    ``exponents`` is the table of :func:`~study.analysis.verdicts.with_verdicts`. Each quantity is
    read on one batch, that of the paper's condition: the held-out one where it was probed. Curves
    are in the order of the table, quantities in that of ``PRIMARY``. Columns beside those of
    ``exponents``:

    - ``rule``: the scaling rule, with its p if the user gave it;
    - ``curve``: the other values that separate the curves; empty if there are none;
    - ``over``: how layers were pooled;
    - ``estimate``: the exponent with ``ci_low`` and ``ci_high``, as text.
    """
    rows = _primary_rows(exponents)
    steps = rows.groupby(["of_curve", "place"])["step"]
    ends = (rows["step"] == steps.transform("min")) | (rows["step"] == steps.transform("max"))
    return _described(rows[rows["fixed"] | ends], exponents)


def headline(exponents: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`summary` at the primary steps of each quantity."""
    rows = _primary_rows(exponents)
    return _described(rows[rows["fixed"]], exponents)


def _primary_rows(exponents: pd.DataFrame) -> pd.DataFrame:
    """The primary quantities at every step, ordered by curve, quantity and step.

    ``fixed``: whether the step is a primary one. ``of_curve``, ``place``: numbers of the curve and
    of the quantity.
    """
    curve = pd.Series(numbered(exponents, curve_columns(exponents)), exponents.index)
    parts = []
    for place, quantity in enumerate(PRIMARY):
        rows = rows_of_condition(quantity, exponents)
        rows = rows.assign(of_curve=curve[rows.index], place=place)
        fixed = at_primary_steps(quantity, rows, rows["of_curve"].to_numpy())
        parts.append(rows.assign(fixed=fixed))
    return pd.concat(parts).sort_values(["of_curve", "place", "step"], kind="stable")


def _described(rows: pd.DataFrame, exponents: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``exponents`` with :data:`SUMMARY_COLUMNS`."""
    named = distinguishing(rows, curve_columns(exponents))
    by_row = list(rows.itertuples(index=False))
    rows = rows.assign(
        rule=list(map(rule_text, rows["scaling"], rows["exponent_p"])),
        curve=[
            ", ".join(f"{name}={setting_text(getattr(row, name))}" for name in named)
            for row in by_row
        ],
        quantity=[f"{row.site} {row.stat}" for row in by_row],
        over=[
            OVER_MODEL if row.layer == MODEL_WIDE else f"mean over {row.layers} layers of the log"
            for row in by_row
        ],
        estimate=list(map(interval_text, rows["exponent"], rows["ci_low"], rows["ci_high"])),
    )
    return rows[list(SUMMARY_COLUMNS)].reset_index(drop=True)


def rule_text(scaling: object, p: float, prefix: str = "power ") -> str:
    """``lora``, or ``power p=0.75`` for a rule whose exponent the user gives."""
    rule = RULES.get(str(scaling))
    return f"{prefix}p={p:g}" if rule is not None and rule.p is None else str(scaling)
