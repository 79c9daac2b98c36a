"""The values that a field may have. A bound stands in the metadata of the field that it limits."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Protocol

from study.errors import StudyError, given, short, unknown

MISSING: Any = "???"
"""OmegaConf's mark for a value that is not set. It is written out here because the types of the
configuration are also read where OmegaConf can't be imported, such as beside Axolotl."""
BOUND = "bound"
"""The key of a bound in a field's metadata."""
LARGEST = 2**63 - 1
"""The largest whole number that files and tensors hold."""
LARGEST_FLOAT = 3e38
"""The largest number that float32 holds."""


class Bound(Protocol):
    """What a field's value must satisfy."""

    def check(self, key: str, value: Any) -> None:
        """Raises :class:`StudyError`, naming ``key``, ``value`` and the values allowed."""
        ...


@dataclass(frozen=True)
class OneOf:
    """One of a few values. ``or_else``: what else a user may give, which becomes one of them."""

    choices: Collection[Any]
    or_else: str = ""

    def check(self, key: str, value: Any) -> None:
        if value not in self.choices:
            choices = ["null" if choice is None else choice for choice in self.choices]
            more = [f"or {self.or_else}"] if self.or_else else []
            raise unknown(key.removesuffix(".name"), value, [*choices, *more])


@dataclass(frozen=True)
class Flag:
    """true, false, or the word ``word``."""

    word: str

    def check(self, key: str, value: Any) -> None:
        if not isinstance(value, bool) and value != self.word:
            raise unknown(key, value, ("true", "false", self.word))


@dataclass(frozen=True)
class SomeOf:
    """``all``, one of a few names, or a list of them, which may not be empty (:func:`chosen`)."""

    choices: Iterable[str]

    def check(self, key: str, value: Any) -> None:
        if not chosen(key, value, self.choices):
            raise StudyError(
                f"{key}={short(value)} chooses nothing: "
                f"give at least one of {', '.join(self.choices)}"
            )


@dataclass(frozen=True)
class Number:
    """A number above ``above``, at least ``least``, at most ``most`` and below ``below``.

    It is finite in float32, because tensors are multiplied by it.
    """

    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None

    @property
    def limits(self) -> str:
        """In words: ``of at least 0 and below 1``; empty if there are none."""
        limits = {
            "above": self.above,
            "of at least": self.least,
            "below": self.below,
            "of at most": self.most,
        }
        return " and ".join(f"{word} {n:g}" for word, n in limits.items() if n is not None)

    def check(self, key: str, value: Any) -> None:
        inside = (
            abs(value) <= LARGEST_FLOAT
            and (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.below is None or value < self.below)
            and (self.most is None or value <= self.most)
        )
        if not inside:
            words = self.limits
            if self.most is None and value > LARGEST_FLOAT:
                words = f"{words} and of at most {LARGEST_FLOAT:g}".removeprefix(" and ")
            raise StudyError(
                f"{key}={value} is out of range: give a finite number {words}".rstrip()
            )


@dataclass(frozen=True)
class Each:
    """A list of ``length`` elements, each within ``bound``."""

    bound: Bound
    length: int

    def check(self, key: str, value: Any) -> None:
        if not isinstance(value, list) or len(value) != self.length:
            raise StudyError(f"{key}={short(value)} is not a list of {self.length} numbers")
        for element in value:
            self.bound.check(key, element)


@dataclass(frozen=True)
class Whole:
    """A whole number from ``least`` to ``most``, or the word ``word``."""

    least: int
    word: str | None = None
    most: int = LARGEST

    def check(self, key: str, value: Any) -> None:
        if self.word is not None and value == self.word:
            return
        if not _is_whole(value) or not self.least <= value <= self.most:
            is_large = _is_whole(value) and value > self.most
            most = f" and at most {self.most}" if is_large else ""
            other = f", or {self.word}" if self.word else ""
            raise StudyError(
                f"{key}={short(value)} is out of range: "
                f"give a whole number of at least {self.least}{most}{other}"
            )


@dataclass(frozen=True)
class StepsOrShare:
    """A whole number of steps from 0 to ``most``, or a share of all steps: a number below 1."""

    most: int

    def check(self, key: str, value: Any) -> None:
        is_share = isinstance(value, float) and 0.0 <= value < 1.0
        if not is_share and not (_is_whole(value) and 0 <= value <= self.most):
            raise StudyError(
                f"{key}={given(value)} is out of range: give a whole number of steps of at most "
                f"{self.most}, or a share of all steps from 0 to below 1, such as {key}=0.1"
            )


@dataclass(frozen=True)
class Rank:
    """A positive integer of at most ``most``, or infinity."""

    most: int

    def check(self, key: str, value: Any) -> None:
        if value == math.inf:
            return
        if not _is_whole(value) or value < 1:
            raise StudyError(
                f"{key}={given(value)}: rank must be a positive integer or inf, such as {key}=16"
            )
        if value > self.most:
            raise StudyError(
                f"{key}={short(value)} is too large: give at most {self.most}, or inf, the limit"
            )


@dataclass(frozen=True)
class PathPart:
    """One component of a path: the name of a folder that is made inside another one."""

    def check(self, key: str, value: Any) -> None:
        why = next((words for words, is_wrong in _WRONG_NAMES.items() if is_wrong(value)), None)
        if why is not None:
            raise StudyError(
                f"{key}={short(value)} {why}: give one name of a folder, such as {key}=quick"
            )


LONGEST_NAME = 200
"""Bytes of a folder's name. File systems allow 255; the rest is for endings."""
_WRONG_NAMES: dict[str, Callable[[str], bool]] = {
    "is empty": lambda name: not name,
    "is not the name of a folder": lambda name: name in (".", ".."),
    "has a slash or a backslash": lambda name: "/" in name or "\\" in name,
    "has characters that can't be printed": lambda name: not name.isprintable(),
    "starts or ends with a space": lambda name: name != name.strip(),
    f"is longer than {LONGEST_NAME} bytes": lambda name: len(name.encode()) > LONGEST_NAME,
}
"""Why a name can't be a folder's; the first that holds is said."""


@dataclass(frozen=True)
class FilePath:
    """A path that the operating system accepts: not empty, without null bytes, not too long."""

    def check(self, key: str, value: Any) -> None:
        parts = value.split("/")
        if not value or "\0" in value or len(value) > 4000 or max(map(len, parts)) > 255:
            raise StudyError(f"{key}={short(value)} is not a path: give the path of a file")


@dataclass(frozen=True)
class Modules:
    """Names of modules: a word, a regex, or a list of names."""

    def check(self, key: str, value: Any) -> None:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            what = "is neither a name nor a list of names"
        elif not names or not all(names):
            what = "is empty or holds an empty name"
        else:
            return
        raise StudyError(
            f"{key}={short(value)} {what}: give all-linear, attention, mlp, a list such as "
            "[q_proj,v_proj], or a regex"
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def bounded(bound: Bound, default: Any = MISSING) -> Any:
    """A dataclass field with a bound."""
    return field(default=default, metadata={BOUND: bound})


def check_bounds(config: Any) -> None:
    """Check every bounded field of a dataclass and of the dataclasses inside it.

    A field that is None by default may be None. Raises :class:`StudyError` for the first value out
    of bounds.
    """
    for key, value, bound in _bounded_values(config, ""):
        bound.check(key, value)


def _bounded_values(config: Any, prefix: str) -> Iterator[tuple[str, Any, Bound]]:
    for of_field in fields(config):
        key, value = prefix + of_field.name, getattr(config, of_field.name)
        bound = of_field.metadata.get(BOUND)
        if is_dataclass(value):
            yield from _bounded_values(value, f"{key}.")
        elif bound is not None and (value is not None or of_field.default is not None):
            yield key, value, bound


def chosen(
    key: str, value: Any, choices: Iterable[str], usual: Iterable[str] | None = None
) -> tuple[str, ...]:
    """The members of ``choices`` that ``value`` asks for, in the order of ``choices``.

    ``value`` is ``all``, one name or a list. ``all`` stands for ``usual``, by default every choice,
    and may stand in a list beside other names. Raises :class:`StudyError` for an unknown name.
    """
    names = tuple(choices)
    wanted = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    for name in wanted:
        if name not in ("all", *names):
            raise unknown(key, name, ("all", *names))
    everything = tuple(names if usual is None else usual) if "all" in wanted else ()
    return tuple(name for name in names if name in wanted or name in everything)
