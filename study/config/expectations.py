"""What an experiment expects: the entries of ``expects:`` in ``conf/experiment/``.

An expectation is written down before the tables of its study exist. A cell's ``config.yaml`` and
record keep the expectations that the experiment had when the cell began. They do not change the
cell's identity. One entry may be the primary test: it is about all others of some kinds together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias

from pydantic import ConfigDict, Field

from study.config.values import Positive, Real, one_of, read, whole_or
from study.errors import StudyError
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.quantities import (
    ALL_KINDS,
    BATCHES,
    DISTANCES,
    LOSS,
    MEAN_LOG,
    MODEL_WIDE,
    SITES,
    STATS,
    TRAIN,
    UNIONS,
)
from study.vocabulary.scaling import exponent, named_rule
from study.vocabulary.verdicts import AGREES, DIFFERS, ONE_SEED, UNCLEAR

SLOPE, FACTOR, P_STAR, P_STAR_LIMIT = "slope", "factor", "p_star", "p_star_limit"
BEST_RATE, BEST_ALPHA, DISTANCE = "best_rate", "best_alpha", "distance"
LOSS_GAP, ALPHA_GAP, DIFFERENCE = "loss_gap", "alpha_gap", "loss_difference"
CAPACITY, PER_PARAMETER = "capacity", "bits_per_parameter"
PRIMARY = "primary"
NEEDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((SLOPE, FACTOR, P_STAR, P_STAR_LIMIT), ("site", "stat", "step")),
    LOSS_GAP: ("step",),
    DIFFERENCE: ("step", "of", "against"),
    **dict.fromkeys((BEST_RATE, BEST_ALPHA, ALPHA_GAP, CAPACITY, PER_PARAMETER), ()),
    DISTANCE: ("measure", "step"),
}
"""Which of ``site``, ``stat``, ``measure`` and ``step`` each needs. It may not have the others."""
EXPONENTS = (SLOPE, P_STAR, P_STAR_LIMIT, BEST_RATE, BEST_ALPHA, DISTANCE, CAPACITY)
"""The kinds that a primary test may be about: their numbers have one unit."""
WHAT_LABELS: dict[str, str] = {
    SLOPE: "slope with rank",
    FACTOR: "factor from the lowest to the highest rank",
    P_STAR: "p\\* over the ranks measured",
    P_STAR_LIMIT: "p\\* corrected for finite rank",
    BEST_RATE: "exponent of the best learning rate",
    LOSS_GAP: "held-out loss at the highest rank minus that at the lowest",
    DIFFERENCE: "difference of losses",
    BEST_ALPHA: "exponent of the best α at a fixed learning rate",
    ALPHA_GAP: "held-out loss at the lowest learning rate minus that at the highest, each at its "
    "best α",
    DISTANCE: "slope of the distance to infinite rank",
    CAPACITY: "slope of the stored bits with the adapter's parameters",
    PER_PARAMETER: "bits stored per parameter",
}
"""What can be expected, in Markdown."""
LAST = "last"
"""The step that is the last one measured."""
FIRST_STEPS = 8
"""The last step of an identity (:attr:`Expectation.is_identity`)."""

FLAT = "flat"
"""The condition that twice the steps add little to what an adapter stored
(:func:`study.analysis.capacity.capacity`)."""
FLAT_IN_WORDS = "once twice the steps add less than 5 %"
"""How expectations had it as the end of ``refuted_by``, before they had ``once``."""

NOT_MEASURED, NOT_MET = "not measured", "condition not met"
MEANINGS: dict[str, str] = {
    AGREES: "shown to be within the tolerance of the expected value",
    DIFFERS: "shown to be further from it than the tolerance",
    UNCLEAR: "neither was shown",
    ONE_SEED: "one seed gives no verdict",
    NOT_MET: "it is about runs to which twice the steps add less than 5 %, and this is not shown",
    NOT_MEASURED: "the tables hold no such row",
}
"""The verdicts on an expectation, each with a sentence for a legend."""


Sentence = Annotated[str, Field(pattern=r"\S")]


@dataclass(kw_only=True)
class Expectation:
    """One expected number.

    - ``what``: a key of :data:`NEEDS`;
    - ``optimizer``, ``rule``: of the curves that it is about. ``rule`` is a name of
      :data:`study.vocabulary.scaling.RULES` or a p; null: every rule;
    - ``site``, ``stat``, ``batch``: of the quantity. ``layer``, ``kind``: null for the whole model,
      or for the mean over all layers;
    - ``of``, ``against``: the settings, by column of ``cells``, whose losses are compared at equal
      others: ``of`` minus ``against``, on the rows of ``batch``;
    - ``measure``: of a distance, a name of :data:`study.vocabulary.quantities.DISTANCES`;
    - ``step``: a number, or ``last``. :data:`NEEDS` says what has no quantity or no step;
    - ``alpha``, ``eps``, ``lr``: null for every alpha and eps, and for the lowest learning rate (of
      a best alpha: for every learning rate);
    - ``predicted``, ``tolerance``: it agrees within ``predicted`` plus or minus ``tolerance``. Of
      a factor the tolerance is a ratio: 1.5 means from ``predicted / 1.5`` to ``predicted * 1.5``.
      So a value shown to be outside refutes it, and nothing else does;
    - ``once``: :data:`FLAT` if it is about such runs only;
    - ``source``: paper and equation, or the theory of this project;
    - ``refuted_by``: a sentence in earlier files and records. Nothing reads it but
      :func:`read_entry`, because some of these sentences say more than the test decides.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    what: Annotated[str, one_of(NEEDS)]
    predicted: Annotated[Real, Field(strict=True)]
    tolerance: Annotated[Positive, Field(strict=True)]
    optimizer: Annotated[str, one_of(OPTIMIZERS)]
    source: Sentence
    refuted_by: str | None = field(default=None, compare=False, repr=False)
    rule: str | None = None
    site: Annotated[str, one_of(SITES)] | None = None
    stat: Annotated[str, one_of(STATS)] | None = None
    batch: Annotated[str, one_of(BATCHES)] = TRAIN
    layer: str | None = None
    kind: str | None = None
    step: Annotated[Any, whole_or(0, LAST, None)] = None
    alpha: Positive | None = None
    lr: Positive | None = None
    eps: Annotated[Real, Field(ge=0)] | None = None
    measure: Annotated[str, one_of(DISTANCES)] | None = None
    of: dict[str, Any] | None = None
    against: dict[str, Any] | None = None
    once: Annotated[str, one_of((FLAT,))] | None = None

    def check(self, prefix: str) -> None:
        try:
            _ = self.p
        except ValueError as error:
            raise StudyError(f"{prefix}rule: {error}") from None
        for name in ("site", "stat", "measure", "step", "of", "against"):
            is_given, is_needed = getattr(self, name) is not None, name in NEEDS[self.what]
            if is_given and not is_needed:
                raise StudyError(f"{prefix}{name}: {self.what} has no {name}, so leave it out")
            if is_needed and not is_given:
                raise StudyError(f"{prefix}{name} is not set: {self.what} needs it")
        if self.what == FACTOR and (self.predicted <= 0 or self.tolerance <= 1):
            why = f"{prefix}tolerance={self.tolerance:g} of a factor of {self.predicted:g}"
            raise StudyError(f"{why}: give a factor above 0 and a ratio above 1, such as 1.5")
        if self.once and self.what not in (CAPACITY, PER_PARAMETER):
            raise StudyError(f"{prefix}once: {self.what} has no condition, so leave it out")
        if self.step == LAST and self.what in (P_STAR, P_STAR_LIMIT):
            raise StudyError(f"{prefix}step={LAST}: {self.what} needs a number")

    @property
    def p(self) -> float | None:
        """The p of the rule; None for every rule, and for a rule that is no power."""
        return None if self.rule is None else exponent(*named_rule(self.rule))

    @property
    def is_identity(self) -> bool:
        """Whether it follows from B = 0, a random A and measured alignments: it is of a tensor at
        one of the first steps."""
        is_of_tensor = self.site is not None or self.measure is not None
        return is_of_tensor and self.step != LAST and self.step <= FIRST_STEPS

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


@dataclass(kw_only=True)
class Primary:
    """The primary test of an experiment: its exponents, measured against predicted.

    - ``rows``: kinds of :data:`EXPONENTS`. Its rows are the experiment's expectations of these;
    - ``rival``: the alternative theory. ``rival_predicts``: its exponent, for all rows or as a list
      in their order, in which null leaves a row out of the test;
    - ``tolerance``: the line of measured on predicted exponents has a slope of 1 and an intercept
      of 0, each within this.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    what: Annotated[str, one_of((PRIMARY,))]
    rows: Annotated[list[Annotated[str, one_of(EXPONENTS)]], Field(min_length=1)]
    rival: Sentence
    rival_predicts: Real | list[Real | None]
    tolerance: Annotated[Positive, Field(strict=True)]
    source: Sentence
    refuted_by: Sentence

    def of(self, entries: "Sequence[Entry]") -> list[tuple[Expectation, float]]:
        """The rows of the test among ``entries``, each with the number of the rival theory."""
        rows = [e for e in entries if isinstance(e, Expectation) and e.what in self.rows]
        of_rival = self.rival_predicts
        numbers = of_rival if isinstance(of_rival, list) else [of_rival] * len(rows)
        if len(numbers) != len(rows) or not rows:
            why = f"rival_predicts has {len(numbers)} numbers for {len(rows)} expectations"
            raise StudyError(f"{why}: give one for each, or one for all")
        return [(row, n) for row, n in zip(rows, numbers, strict=True) if n is not None]


Entry: TypeAlias = Expectation | Primary


def read_entry(entry: Any, prefix: str = "") -> Entry:
    is_mapping = isinstance(entry, Mapping)
    if is_mapping and str(entry.get("refuted_by", "")).endswith(FLAT_IN_WORDS):
        entry = {"once": FLAT, **entry}
    is_primary = is_mapping and entry.get("what") == PRIMARY
    return read(Primary, entry, prefix) if is_primary else read(Expectation, entry, prefix)


def check_entries(entries: Sequence[Entry]) -> None:
    for number, entry in enumerate(entries):
        if isinstance(entry, Expectation):
            entry.check(f"expects[{number}].")
        else:
            try:
                entry.of(entries)
            except StudyError as error:
                raise StudyError(f"expects[{number}].{error}") from None


def read_entries(entries: Sequence[object]) -> list[Entry]:
    """The valid entries of a record's ``expects``."""
    found: list[Entry] = []
    for entry in entries:
        try:
            one = read_entry(entry)
            check_entries([one] if isinstance(one, Expectation) else [])
        except StudyError:
            continue
        found.append(one)
    return found
