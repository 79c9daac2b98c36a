"""What figures read of theory: rows of ``exponents``, the init and the layers of a family.

A figure shows the column ``predicted`` of these rows, and no theory where it is NaN.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from study.analysis.verdicts import rows_of
from study.figures import laws
from study.figures.selection import Family, Rule
from study.theory import Layer
from study.vocabulary.inits import INITS, Init
from study.vocabulary.quantities import ALIGNMENTS, MODEL_WIDE, TRAIN, Quantity

DEFAULT_INIT = "kaiming"
"""The init of studies whose tables name none."""


def init_of(family: Family) -> Init | None:
    """The init of a family; None if it is not one of ours (an imported adapter)."""
    return INITS.get(family.keys.get("init", DEFAULT_INIT))


def fits(
    exponents: pd.DataFrame, family: Family, rule: Rule, quantity: Quantity, batch: str = TRAIN
) -> pd.DataFrame:
    """The quantity's fits for one family and rule: one row per step, in order."""
    rows = exponents[rows_of(quantity, exponents, batch)] if len(exponents) else exponents
    return laws.rows_of(rows, family, rule).sort_values("step") if len(rows) else rows


def layers(
    cells: Iterable[str], quantity: Quantity, probes: pd.DataFrame, step: int, kurtosis: float
) -> list[Layer]:
    """Sizes and alignments of each layer, as geometric means over ``cells``.

    Ranks and seeds are averaged: in a lazy run alignments hardly depend on the rank.
    """
    rows = probes[
        (probes["site"] == quantity.site)
        & (probes["step"] == step)
        & (probes["batch"] == TRAIN)
        & (probes["layer"] != MODEL_WIDE)
        & probes["cell_id"].isin(set(cells))
    ]
    return layers_of(rows, kurtosis)


def layers_of(rows: pd.DataFrame, kurtosis: float) -> list[Layer]:
    """A layer per value of the column ``layer``, from the columns ``d_in``, ``d_out`` and those of
    alignments; none if these were not recorded."""
    names = [name for name in ("d_in", "d_out", *ALIGNMENTS) if name in rows]
    if "d_in" not in names or rows.empty:
        return []
    logs = pd.DataFrame(np.log(rows[names].astype(float))).groupby(rows["layer"].astype(str)).mean()
    found = []
    for values in pd.DataFrame(np.exp(logs)).to_dict("records"):
        given = {str(name): value for name, value in values.items() if np.isfinite(value)}
        found.append(Layer(**given, kurtosis=kurtosis))
    return found
