"""Predictions for figures: the rows of ``exponents`` of a quantity, and the exponents from theory.

A prediction in the table counts finite ranks. Where there is none, a figure shows the asymptote.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from study.analysis.verdicts import rows_of
from study.figures import laws
from study.figures.selection import Family, Rule
from study.theory import PLAIN, Modifiers, predict
from study.vocabulary.inits import INITS, Init
from study.vocabulary.optimizers import OPTIMIZERS, decay_of
from study.vocabulary.quantities import Quantity

DEFAULT_INIT = "kaiming"
"""The init of studies whose tables name none."""


@dataclass(frozen=True)
class Setting:
    """What theory reads of a family: a known optimizer, an init that is a power law, modifiers."""

    optimizer: str
    init: Init
    q: float
    modifiers: Modifiers


def setting(family: Family) -> Setting | None:
    """The setting of a family; None if theory predicts nothing for its optimizer or its init.

    Whether the gradient norm exceeded the clipping threshold at every rank is not in ``cells``, so
    a family with clipping is "some": nothing is predicted for runs that are clipped at some ranks.
    """
    optimizer, init = str(family.keys.get("optimizer")), init_of(family)
    if optimizer not in OPTIMIZERS or init is None or init.q is None:
        return None
    decay, clip = family.keys.get("weight_decay", 0.0), family.keys.get("clip")
    modifiers = Modifiers(
        decay=decay_of(optimizer, decay) if decay > 0 else "none",
        clip=PLAIN.clip if clip is None or pd.isna(clip) else "some",
    )
    return Setting(optimizer, init, init.q, modifiers)


def init_of(family: Family) -> Init | None:
    """The init of a family; None if it is not one of ours (an imported adapter)."""
    return INITS.get(family.keys.get("init", DEFAULT_INIT))


def asymptote(quantity: Quantity, family: Family, p: float, step: int) -> float:
    """The predicted exponent as r grows; NaN if a crossover bends the curve at finite ranks.

    A quantity with a crossover is predicted in the ``exponents`` table, if its layers' alignments
    were recorded. Its asymptote alone would be off by up to 0.4 at ranks up to 256.
    """
    known = setting(family)
    if known is None:
        return np.nan
    predicted = predict(
        quantity.site,
        quantity.stat,
        step=step,
        optimizer=known.optimizer,
        p=p,
        q=known.q,
        init=known.init.drawn,
        modifiers=known.modifiers,
    )
    bends = predicted.row is None or predicted.row.term != "none"
    return np.nan if bends or predicted.exponent is None else predicted.exponent


def fits(exponents: pd.DataFrame, family: Family, rule: Rule, quantity: Quantity) -> pd.DataFrame:
    """The quantity's fits for one family and rule: one row per step, in order."""
    rows = exponents[rows_of(quantity, exponents)] if len(exponents) else exponents
    return laws.rows_of(rows, family, rule).sort_values("step") if len(rows) else rows
