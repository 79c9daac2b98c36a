"""The primary quantities: the verdicts' own (:data:`study.analysis.PRIMARY`), with the names and looks of a figure."""

from typing import Any

import numpy as np
import pandas as pd

from study.analysis.verdicts import rows_of
from study.figures import laws
from study.figures.selection import Family, Rule
from study.theory import PLAIN, Modifiers, predict
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import OPTIMIZERS, decay_of
from study.vocabulary.quantities import Quantity


def asymptote(quantity: Quantity, family: Family, p: float, step: int) -> float:
    """The exponent that theory predicts as r grows, where no crossover bends the curve at finite ranks; else NaN.

    A quantity with a crossover has a prediction in the ``exponents`` table, if its layers' numbers were recorded: the
    asymptote alone would be off by up to 0.4 at ranks up to 256.
    """
    optimizer, init = family.keys.get("optimizer"), INITS.get(family.keys.get("init", "kaiming"))
    if optimizer not in OPTIMIZERS or init is None or init.q is None:
        return np.nan
    known: dict[str, Any] = {
        "step": step,
        "optimizer": optimizer,
        "p": p,
        "q": init.q,
        "init": init.drawn,
    }
    said = predict(quantity.site, quantity.stat, modifiers=modifiers(family), **known)
    if said.exponent is None or said.row is None or said.row.term != "none":
        return np.nan
    return said.exponent


def modifiers(family: Family) -> Modifiers:
    """What the cells' own columns say of decay and clipping.

    Adam and SGD of torch: AdamW decays on its own, the others add it to the gradient. Whether a threshold was met at
    every rank is not in ``cells``: a clipped run may lie astride it, where nothing is predicted.
    """
    decay, clip = family.keys.get("weight_decay", 0.0), family.keys.get("clip")
    optimizer = family.keys.get("optimizer")
    return Modifiers(
        decay=decay_of(optimizer, decay) if optimizer in OPTIMIZERS and decay > 0 else "none",
        clip=PLAIN.clip if clip is None or pd.isna(clip) else "some",
    )


def fits(exponents: pd.DataFrame, family: Family, rule: Rule, quantity: Quantity) -> pd.DataFrame:
    """The quantity's fits of one family and rule, a row per step, in order."""
    rows = exponents[rows_of(quantity, exponents)] if len(exponents) else exponents
    return laws.rows_of(rows, family, rule).sort_values("step") if len(rows) else rows
