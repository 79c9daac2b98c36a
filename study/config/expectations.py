"""The bounds of the expectations in ``conf/experiment/``."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from study.config.bounds import MISSING, Bound, Number, OneOf, Whole
from study.config.types import MOST_STEPS
from study.errors import StudyError, short, unknown
from study.vocabulary.distances import MEASURES
from study.vocabulary.expectations import (
    FACTOR,
    LAST,
    NEEDS,
    P_STAR,
    P_STAR_LIMIT,
    WHATS,
    Expectation,
)
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.quantities import BATCHES, SITES, STATS

BOUNDS: dict[str, Bound] = {
    "what": OneOf(WHATS),
    "predicted": Number(),
    "tolerance": Number(above=0.0),
    "optimizer": OneOf(OPTIMIZERS),
    "site": OneOf(SITES),
    "stat": OneOf(STATS),
    "measure": OneOf(MEASURES),
    "batch": OneOf(BATCHES),
    "step": Whole(0, LAST, MOST_STEPS),
    "alpha": Number(above=0.0),
    "lr": Number(above=0.0),
    "eps": Number(least=0.0),
}
"""The values that a field may have, if it is not null."""
OF_SOME = ("site", "stat", "measure", "step")
"""The fields that some expectations need and the others may not have."""


NAMES = tuple(field.name for field in fields(Expectation))
NUMBERS = tuple(field.name for field in fields(Expectation) if "float" in str(field.type))


def check_form(expects: Any) -> None:
    """Check that plain ``expects`` is a list of entries with known keys and typed numbers.

    Raises :class:`StudyError`, which names the entry and the key, for the first mistake.
    """
    if not isinstance(expects, list):
        raise StudyError(f"expects={short(expects)} is not a list: begin each entry with `- what:`")
    for number, entry in enumerate(expects):
        if not isinstance(entry, dict):
            raise StudyError(f"expects[{number}]={short(entry)} is no entry: give keys and values")
        for key, value in entry.items():
            if key not in NAMES:
                raise unknown(f"key of expects[{number}]", key, NAMES)
            is_missing = value is None or value == MISSING
            if key in NUMBERS and not is_missing and type(value) not in (int, float):
                raise StudyError(f"expects[{number}].{key}={short(value)} is not a number")


def check_expectations(expects: Sequence[Expectation]) -> None:
    """Raises :class:`StudyError`, which names the entry and the key, for the first bad value."""
    for number, one in enumerate(expects):
        _check(f"expects[{number}].", one)


def _check(prefix: str, one: Expectation) -> None:
    for name, bound in BOUNDS.items():
        if (value := getattr(one, name)) is not None:
            bound.check(prefix + name, value)
    for name in ("source", "refuted_by"):
        if not getattr(one, name).strip():
            raise StudyError(f"{prefix}{name} is empty: write a sentence")
    try:
        _ = one.p
    except ValueError as error:
        raise StudyError(f"{prefix}rule: {error}") from None
    for name in OF_SOME:
        given, needed = getattr(one, name) is not None, name in NEEDS[one.what]
        if given and not needed:
            raise StudyError(f"{prefix}{name}: {one.what} has no {name}, so leave it out")
        if needed and not given:
            raise StudyError(f"{prefix}{name} is not set: {one.what} needs it")
    if one.what == FACTOR and (one.predicted <= 0 or one.tolerance <= 1):
        raise StudyError(
            f"{prefix}tolerance={one.tolerance:g} of a factor of {one.predicted:g}: give a factor "
            "above 0 and a ratio above 1, such as 1.5"
        )
    if one.step == LAST and one.what in (P_STAR, P_STAR_LIMIT):
        raise StudyError(f"{prefix}step={LAST}: {one.what} needs a number")
