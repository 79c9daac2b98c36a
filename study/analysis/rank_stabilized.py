"""The paper's own condition: are the adapters rank-stabilized, from the first step to the last?

Kalajdzievski 2023 (Definition 3.1, Theorem 3.2): the outputs of an adapter, and the gradients that
it passes to its input, must not depend on the rank, at any step of training. They are read on one
fixed batch that is never trained on, if the study probed it; otherwise on the training batch. The
gradient norm over all adapters (the paper's Figure 3) stands beside them.

Nothing is fitted or tested here: the rows are those of ``exponents``, with their words.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from study.analysis.grouping import curve_columns, distinguishing, numbered
from study.analysis.wording import setting_text
from study.vocabulary.quantities import (
    BACKWARD_IN,
    FORWARD_OUT,
    GRADIENT_NORM,
    HELDOUT,
    TRAIN,
    Quantity,
)
from study.vocabulary.verdicts import ONE_SEED, STABLE, UNCLEAR

CONDITION: tuple[Quantity, ...] = (FORWARD_OUT, BACKWARD_IN, GRADIENT_NORM)
"""What must not depend on the rank, in the order of the tables."""
BATCHES_OF = {FORWARD_OUT: (HELDOUT, TRAIN), BACKWARD_IN: (HELDOUT, TRAIN), GRADIENT_NORM: (TRAIN,)}
"""The batches on which each is read: the first one that the study probed."""
LOST, FAILS, HOLDS, LATE, OPEN = ANSWERS = (
    "stable at the first step and not at the last",
    "not stable at the last step",
    "stable at the first step and at the last",
    "stable at the last step and not at the first",
    "not decided",
)
"""What the verdicts of a curve say together, in the order of a report: what is lost comes first."""
SAYS_NOTHING = {UNCLEAR, ONE_SEED}


def condition_rows(exponents: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``exponents`` on the paper's condition, at the first and last step measured.

    ``exponents`` is the table of :func:`~study.analysis.verdicts.with_verdicts`. Curves are in its
    order, quantities in that of :data:`CONDITION`. Columns beside those of ``exponents``:

    - ``curve_number``: equal for the rows of one curve; ``curve``: the values that separate it from
      others of its optimizer and rule, as text; ``place``: of the quantity;
    - ``is_first``, ``is_last``: whether the step is the first or the last one at which the
      quantity has an exponent. An adapter's output is zero at step 0, so its first step is 1.
    """
    parts = [
        rows_of_condition(quantity, exponents).assign(place=place)
        for place, quantity in enumerate(CONDITION)
    ]
    rows = pd.concat(parts)
    rows["curve_number"] = numbered(rows, curve_columns(exponents))
    steps = rows.groupby(["curve_number", "place"])["step"]
    rows["is_first"] = rows["step"] == steps.transform("min")
    rows["is_last"] = rows["step"] == steps.transform("max")
    rows = rows[rows["is_first"] | rows["is_last"]].copy()
    named = distinguishing(rows, curve_columns(exponents))
    rows["curve"] = [
        ", ".join(f"{name}={setting_text(value)}" for name, value in zip(named, row, strict=True))
        for _, *row in rows[named].itertuples(name=None)
    ]
    return rows.sort_values(["curve_number", "place", "step"], kind="stable").reset_index(drop=True)


def answer(first: Iterable[str], last: Iterable[str]) -> str:
    """One of :data:`ANSWERS`, from the verdicts at the first and at the last step."""
    at_first, at_last = _all_stable(first), _all_stable(last)
    if at_last is False:
        return LOST if at_first else FAILS
    if at_last and at_first is not None:
        return HOLDS if at_first else LATE
    return OPEN


def _all_stable(words: Iterable[str]) -> bool | None:
    """Whether all words are ``stable``. None if some test showed nothing, and none a slope."""
    found = set(words)
    if found - {STABLE} - SAYS_NOTHING:
        return False
    return None if found & SAYS_NOTHING else True


def rows_of_condition(quantity: Quantity, exponents: pd.DataFrame) -> pd.DataFrame:
    """The rows of a quantity at any step; for each curve on the first of its batches that was
    probed. They are those of :data:`BATCHES_OF`, or the training batch."""
    here = np.ones(len(exponents), bool)
    for name in ("site", "stat", "kind", "layer"):
        here &= (exponents[name] == getattr(quantity, name)).to_numpy()
    rows = exponents[here]
    batches = BATCHES_OF.get(quantity, (TRAIN,))
    rank = rows["batch"].map({name: n for n, name in enumerate(batches)}).astype(float)
    curve = numbered(rows, curve_columns(exponents))
    return rows[(rank == rank.groupby(curve).transform("min")).to_numpy()]
