"""Rows of p* that are one measurement under several rules.

Rules share their draws of A and their batches. Before training moves the weights, a quantity under
one rule is that under another times a power of gamma, so both give the same p*. Such rows are no
evidence for each other. (:func:`study.analysis.stable.side_by_side` does the same for optimizers.)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from study.analysis.grouping import numbered

SAME = 5e-4
"""Rows are one measurement if their p* and intervals differ by less than this. It is far below what
another batch or another draw of A would change, and above rounding and the effect of eps."""

NUMBERS = ("p_star", "ci_low", "ci_high", "predicted", "p_star_limit", "high_p_star")
QUANTITY = (
    *("optimizer", "site", "stat", "batch", "step", "kind", "layer", "method"),
    *("rank_min", "rank_max"),
)


def one_per_measurement(rows: pd.DataFrame, settings: Sequence[str] = ()) -> pd.DataFrame:
    """``rows`` of :func:`~study.analysis.stable.side_by_side`, one for rules that share it.

    The first row of each measurement stays. Its new column ``rules`` lists the pairs of scaling and
    p that have it. Rows with different values of ``settings`` are kept apart.
    """
    kept: list[dict[Any, Any]] = []
    for row in rows.to_dict("records"):
        rule = row["scaling"], row["exponent_p"]
        twin = next((one for one in kept if _same(one, row, settings)), None)
        if twin is None:
            kept.append(row | {"rules": [rule]})
        else:
            twin["rules"].append(rule)
    return pd.DataFrame(kept, columns=[*rows.columns, "rules"])


def one_per_optimizer(rows: pd.DataFrame, settings: Sequence[str]) -> pd.DataFrame:
    """Of the rules that give p* of a quantity at a step, the row of the one to read.

    Its steps are small, if those of any are, and its interval is the narrowest of those.
    """
    same = ["optimizer", "site", "stat", "step", *settings]
    order = pd.DataFrame(
        {
            "of": numbered(rows, same),
            "lazy": -rows["lazy"].fillna(0.0).to_numpy(float),
            "width": (rows["ci_high"] - rows["ci_low"]).fillna(np.inf).to_numpy(float),
            "place": np.arange(len(rows)),
        }
    ).sort_values(["of", "lazy", "width", "place"], kind="stable")
    return rows.iloc[sorted(order.drop_duplicates("of")["place"])]


def _same(one: Mapping[Any, Any], other: Mapping[Any, Any], settings: Sequence[str]) -> bool:
    if any(one[name] != other[name] for name in QUANTITY):
        return False
    if any(str(one[name]) != str(other[name]) for name in settings):
        return False
    a, b = (np.array([row[name] for name in NUMBERS], float) for row in (one, other))
    return np.allclose(a, b, rtol=0, atol=SAME, equal_nan=True)


def shared_rules(rows: pd.DataFrame) -> list[str]:
    """What a reader of :func:`one_per_measurement` must know, in sentences for a caption."""
    if not (rows["rules"].map(len) > 1).any():
        return []
    return ["Rules in one row share their draws and batches: they are one measurement."]
