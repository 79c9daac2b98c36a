"""The primary quantities: the verdicts' own (:data:`study.analysis.PRIMARY`), with the names and looks of a figure."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from study.analysis.grids import ALL_KINDS
from study.figures import laws
from study.figures.selection import Family, Rule
from study.theory import FAMILIES, PLAIN, Modifiers, predict
from study.vocabulary.inits import INITS
from study.vocabulary.quantities import MODEL_WIDE


@dataclass(frozen=True)
class Quantity:
    """A statistic as the ``exponents`` table names it, and what a figure calls it and draws it like.

    The hues keep clear of the rules'; markers tell the quantities apart without them.
    """

    name: str
    symbol: str
    site: str
    stat: str
    layer: str
    kind: str
    colour: str
    marker: str

    def rows(self, exponents: pd.DataFrame) -> pd.DataFrame:
        """Its rows of ``exponents``, at every step, on the training batch."""
        if exponents.empty:
            return exponents
        here = exponents["batch"] == "train"
        for column in ("site", "stat", "layer", "kind"):
            here = here & (exponents[column] == getattr(self, column))
        return exponents[here]


GRADIENT = Quantity(
    "gradient norm",
    r"$\|\nabla_{\!A,B}\,L\|$",
    *("adapter_grad", "norm", MODEL_WIDE, MODEL_WIDE),
    *("#222222", "o"),
)
DESCENT = Quantity(
    "descent",
    r"$-\langle\nabla_{\!A,B}\,L,\ \Delta\rangle$",
    *("adapter_update", "descent", MODEL_WIDE, MODEL_WIDE),
    *("#c2185b", "D"),
)
FORWARD = Quantity(
    "forward",
    r"rms of $\gamma BAx$",
    *("adapter_out", "rms", "mean_log", ALL_KINDS),
    *("#2b6fc2", "^"),
)
BACKWARD = Quantity(
    "backward",
    r"rms of $\gamma A^{\mathsf{T}} B^{\mathsf{T}} g$",
    *("adapter_in_grad", "rms", "mean_log", ALL_KINDS),
    *("#8a9a00", "v"),
)
PRIMARY = (GRADIENT, DESCENT, FORWARD, BACKWARD)


def asymptote(quantity: Quantity, family: Family, p: float, step: int) -> float:
    """The exponent that theory predicts as r grows, where no crossover bends the curve at finite ranks; else NaN.

    A quantity with a crossover has a prediction in the ``exponents`` table, if its layers' numbers were recorded: the
    asymptote alone would be off by up to 0.4 at ranks up to 256.
    """
    optimizer, init = family.keys.get("optimizer"), INITS.get(family.keys.get("init", "kaiming"))
    if optimizer not in FAMILIES or init is None or init.q is None:
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
    decays, clip = family.keys.get("weight_decay", 0.0), family.keys.get("clip")
    coupled = family.keys.get("optimizer") in ("sgd", "momentum", "nesterov", "adam", "rmsprop")
    return Modifiers(
        decay="none" if not decays or pd.isna(decays) else "coupled" if coupled else "decoupled",
        clip=PLAIN.clip if clip is None or pd.isna(clip) else "some",
    )


def fits(exponents: pd.DataFrame, family: Family, rule: Rule, quantity: Quantity) -> pd.DataFrame:
    """The quantity's fits of one family and rule, a row per step, in order."""
    rows = quantity.rows(exponents)
    return laws.rows_of(rows, family, rule).sort_values("step") if len(rows) else rows
