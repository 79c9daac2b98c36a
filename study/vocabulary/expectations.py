"""What an experiment expects: the entries of ``expects:`` in ``conf/experiment/``.

An expectation is written down before the tables of its study exist. A cell's ``config.yaml`` and
record keep those that stood in the experiment when the cell began. They are no part of the cell's
identity.
"""

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, fields
from typing import Any

from study.vocabulary.agreements import AGREES, DIFFERS
from study.vocabulary.distances import LOSS, MEASURES
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.quantities import (
    ALL_KINDS,
    MEAN_LOG,
    MODEL_WIDE,
    SITES,
    STATS,
    TRAIN,
    UNIONS,
)
from study.vocabulary.scaling import exponent, named_rule
from study.vocabulary.verdicts import ONE_SEED, UNCLEAR

SLOPE, FACTOR, P_STAR, P_STAR_LIMIT, BEST_RATE, LOSS_GAP, BEST_ALPHA, ALPHA_GAP, DISTANCE = (
    *("slope", "factor", "p_star", "p_star_limit", "best_rate"),
    *("loss_gap", "best_alpha", "alpha_gap", "distance"),
)
NEEDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((SLOPE, FACTOR, P_STAR, P_STAR_LIMIT), ("site", "stat", "step")),
    LOSS_GAP: ("step",),
    **dict.fromkeys((BEST_RATE, BEST_ALPHA, ALPHA_GAP), ()),
    DISTANCE: ("measure", "step"),
}
"""Which of ``site``, ``stat``, ``measure`` and ``step`` each needs. It may not have the others."""
WHATS = tuple(NEEDS)
WHAT_LABELS: dict[str, str] = {
    SLOPE: "slope with rank",
    FACTOR: "factor from the lowest to the highest rank",
    P_STAR: "p\\* over the ranks measured",
    P_STAR_LIMIT: "p\\* corrected for finite rank",
    BEST_RATE: "exponent of the best learning rate",
    LOSS_GAP: "held-out loss at the highest rank minus that at the lowest",
    BEST_ALPHA: "exponent of the best α at a fixed learning rate",
    ALPHA_GAP: "held-out loss at the lowest learning rate minus that at the highest, each at its "
    "best α",
    DISTANCE: "slope of the distance to infinite rank",
}
"""What can be expected, in Markdown."""
LAST = "last"
"""The step that is the last one measured."""

NOT_MEASURED = "not measured"
MEANINGS: dict[str, str] = {
    AGREES: "shown to be within the tolerance of the expected value",
    DIFFERS: "shown to be further from it than the tolerance",
    UNCLEAR: "neither was shown",
    ONE_SEED: "one seed gives no verdict",
    NOT_MEASURED: "the tables hold no such row",
}
"""The verdicts on an expectation, each with a sentence for a legend."""


@dataclass(kw_only=True)
class Expectation:
    """One expected number.

    - ``what``: one of :data:`WHATS`;
    - ``optimizer``, ``rule``: of the curves that it is about. ``rule`` is a name of
      :data:`study.vocabulary.scaling.RULES` or a p; null: every rule;
    - ``site``, ``stat``, ``batch``: of the quantity. ``layer``, ``kind``: null for the whole model,
      or for the mean over all layers;
    - ``measure``: of a distance, a name of :data:`study.vocabulary.distances.MEASURES`;
    - ``step``: a number, or ``last``. :data:`NEEDS` says what has no quantity or no step;
    - ``alpha``, ``eps``, ``lr``: null for every alpha and eps, and for the lowest learning rate (of
      a best alpha: for every learning rate);
    - ``predicted``, ``tolerance``: it agrees within ``predicted`` plus or minus ``tolerance``. Of
      a factor the tolerance is a ratio: 1.5 means from ``predicted / 1.5`` to ``predicted * 1.5``;
    - ``source``: paper and equation, or the theory of this project;
    - ``refuted_by``: a sentence.
    """

    what: str
    predicted: float
    tolerance: float
    optimizer: str
    source: str
    refuted_by: str
    rule: str | None = None
    site: str | None = None
    stat: str | None = None
    batch: str = TRAIN
    layer: str | None = None
    kind: str | None = None
    step: Any = None
    alpha: float | None = None
    lr: float | None = None
    eps: float | None = None
    measure: str | None = None

    @property
    def p(self) -> float | None:
        """The p of the rule; None for every rule. Raises ``ValueError`` for an unknown rule."""
        return None if self.rule is None else exponent(*named_rule(self.rule))

    @property
    def place(self) -> dict[str, str | None]:
        """The columns of ``exponents`` and ``stable`` that name the quantity, with their values."""
        wide = self.site in UNIONS or self.measure == LOSS
        whole = wide and self.layer is None and self.kind is None
        return {
            "site": self.measure or self.site,
            "stat": DISTANCE if self.measure else self.stat,
            "batch": self.batch,
            "layer": self.layer or (MODEL_WIDE if whole else MEAN_LOG),
            "kind": self.kind or (MODEL_WIDE if whole else ALL_KINDS),
        }


def read_expectation(entry: object) -> Expectation | None:
    """The expectation in a record; None if a field is missing, unknown or of the wrong type."""
    if not isinstance(entry, Mapping) or not set(entry) <= set(_TYPES):
        return None
    if not all(_is_of(_TYPES[name], value) for name, value in entry.items()):
        return None
    try:
        found = Expectation(**entry)
        _ = found.p
    except (TypeError, ValueError):
        return None
    is_known = (
        found.what in WHATS
        and found.optimizer in OPTIMIZERS
        and all(
            getattr(found, name) in names
            for name, names in _NAMED.items()
            if name in NEEDS[found.what]
        )
        and (found.what != FACTOR or (found.predicted > 0 and found.tolerance > 1))
    )
    return found if is_known else None


_NAMED: dict[str, Container[str]] = {"site": SITES, "stat": STATS, "measure": MEASURES}
_TYPES = {field.name: str(field.type) for field in fields(Expectation)}


def _is_of(kind: str, value: object) -> bool:
    """Whether a value has the type that its field names."""
    if value is None:
        return "None" in kind or "Any" in kind
    if "float" in kind:
        return type(value) in (int, float) and math.isfinite(float(value))  # type: ignore[arg-type]
    return type(value) is str or ("Any" in kind and type(value) is int)
