"""The values that a field may have. A bound stands in the metadata of the field that it limits."""

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Protocol

from omegaconf import MISSING

from study.errors import StudyError, unknown

BOUND = "bound"
"""The key of a bound in a field's metadata."""


class Bound(Protocol):
    """What a field's value must satisfy."""

    def check(self, key: str, value: Any) -> None:
        """Raises :class:`StudyError`, naming ``key``, ``value`` and the values allowed."""
        ...


@dataclass(frozen=True)
class OneOf:
    """One of a few values."""

    choices: Collection[Any]

    def check(self, key: str, value: Any) -> None:
        if value not in self.choices:
            choices = ["null" if choice is None else choice for choice in self.choices]
            raise unknown(key.removesuffix(".name"), value, choices)


@dataclass(frozen=True)
class SomeOf:
    """``all``, one of a few names, or a list of them (:func:`chosen`)."""

    choices: Iterable[str]

    def check(self, key: str, value: Any) -> None:
        chosen(key, value, self.choices)


@dataclass(frozen=True)
class Number:
    """A finite number above ``above``, at least ``least``, and below ``below``."""

    above: float | None = None
    least: float | None = None
    below: float | None = None

    def check(self, key: str, value: Any) -> None:
        inside = (
            math.isfinite(value)
            and (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.below is None or value < self.below)
        )
        if not inside:
            limits = (("above", self.above), ("of at least", self.least), ("below", self.below))
            words = " and ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None)
            raise StudyError(
                f"{key}={value} is out of range: give a finite number {words}".rstrip()
            )


@dataclass(frozen=True)
class Whole:
    """A whole number of at least ``least``, or the word ``word``."""

    least: int
    word: str | None = None

    def check(self, key: str, value: Any) -> None:
        if self.word is not None and value == self.word:
            return
        if not _is_whole(value) or value < self.least:
            other = f", or {self.word}" if self.word else ""
            raise StudyError(
                f"{key}={value} is out of range: "
                f"give a whole number of at least {self.least}{other}"
            )


@dataclass(frozen=True)
class Rank:
    """A positive integer, or infinity."""

    def check(self, key: str, value: Any) -> None:
        if value != math.inf and (not _is_whole(value) or value < 1):
            raise StudyError(
                f"{key}={value}: rank must be a positive integer or inf, such as {key}=16"
            )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def bounded(bound: Bound, default: Any = MISSING) -> Any:
    """A dataclass field with a bound."""
    return field(default=default, metadata={BOUND: bound})


def check_bounds(config: Any) -> None:
    """Check every bounded field of a dataclass and of the dataclasses inside it.

    None is a value that is not set. Of a list, every element is checked. Raises
    :class:`StudyError` for the first value out of bounds.
    """
    for key, value, bound in _bounded_values(config, ""):
        bound.check(key, value)


def _bounded_values(config: Any, prefix: str) -> Iterator[tuple[str, Any, Bound]]:
    for of_field in fields(config):
        key, value = prefix + of_field.name, getattr(config, of_field.name)
        bound = of_field.metadata.get(BOUND)
        if is_dataclass(value):
            yield from _bounded_values(value, f"{key}.")
        elif bound is not None and value is not None:
            elements = value if isinstance(value, list) and isinstance(bound, Number) else [value]
            yield from ((key, element, bound) for element in elements)


def chosen(
    key: str, value: Any, choices: Iterable[str], usual: Iterable[str] | None = None
) -> tuple[str, ...]:
    """The members of ``choices`` that ``value`` asks for, in the order of ``choices``.

    ``value`` is ``all``, one name or a list. ``all`` stands for ``usual``, by default every choice,
    and may stand in a list beside other names. Raises :class:`StudyError` for an unknown name.
    """
    names = tuple(choices)
    wanted = [value] if isinstance(value, str) else list(value)
    for name in wanted:
        if name not in ("all", *names):
            raise unknown(key, name, ("all", *names))
    everything = tuple(names if usual is None else usual) if "all" in wanted else ()
    return tuple(name for name in names if name in wanted or name in everything)
