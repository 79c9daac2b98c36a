"""Rows of p* that are one measurement, although several rules or optimizers have them.

Rules share their draws of A and their batches. Before training moves the weights, a quantity under
one rule is that under another times a power of gamma, so both give the same p*. At step 0 no
optimizer has acted yet, so a gradient is one measurement for every optimizer. Such rows are no
evidence for each other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from study.vocabulary.optimizers import OPTIMIZERS, label, of_family

SAME = 5e-4
"""Rows are one measurement if their p* and intervals differ by less than this. It is far below what
another batch or another draw of A would change, and above rounding and the effect of eps."""

NUMBERS = ("p_star", "ci_low", "ci_high", "predicted", "p_star_limit", "high_p_star")
QUANTITY = ("site", "stat", "batch", "step", "kind", "layer", "method", "rank_min", "rank_max")


def one_per_measurement(rows: pd.DataFrame, settings: Sequence[str] = ()) -> pd.DataFrame:
    """``rows`` of :func:`~study.analysis.stable.side_by_side`, without repetitions.

    The first row of each measurement stays. Columns beside those of ``rows``: ``optimizers``, the
    names of the optimizers that share it, and ``rules``, the pairs of scaling and p. Rows with
    different values of ``settings`` are kept apart.
    """
    kept: list[dict[Any, Any]] = []
    for row in rows.to_dict("records"):
        twin = next((one for one in kept if _same(one, row, settings)), None)
        if twin is None:
            twin = row | {"optimizers": [], "rules": []}
            kept.append(twin)
        for name, value in (
            ("optimizers", row["optimizer"]),
            ("rules", (row["scaling"], row["exponent_p"])),
        ):
            if value not in twin[name]:
                twin[name].append(value)
    return pd.DataFrame(kept, columns=[*rows.columns, "optimizers", "rules"])


def _same(one: Mapping[Any, Any], other: Mapping[Any, Any], settings: Sequence[str]) -> bool:
    if any(one[name] != other[name] for name in QUANTITY):
        return False
    if any(str(one[name]) != str(other[name]) for name in settings):
        return False
    a, b = (np.array([row[name] for name in NUMBERS], float) for row in (one, other))
    return np.allclose(a, b, rtol=0, atol=SAME, equal_nan=True)


def notes(rows: pd.DataFrame) -> list[str]:
    """What readers of :func:`one_per_measurement` must know, in sentences; those that apply."""
    found = []
    if (rows["rules"].map(len) > 1).any():
        found.append("Rules in one row share their draws and batches: they are one measurement.")
    if (rows["optimizers"].map(len) > 1).any():
        found.append(
            "At step 0 no optimizer has acted, so a gradient is the same measurement for every "
            "optimizer."
        )
    names = dict.fromkeys(name for of_row in rows["optimizers"] for name in of_row)
    signs = [label(name) for name in names if name in of_family("sign")]
    with_eps = [name for name in names if name in OPTIMIZERS and OPTIMIZERS[name].has_eps]
    if len(signs) > 1 and with_eps:
        found.append(
            f"The first updates of {' and '.join(signs)} are the sign of the gradient, up to eps: "
            "they differ from step 1."
        )
    return found
