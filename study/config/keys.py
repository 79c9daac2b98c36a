"""The keys of ``study train``: which exist, and what each may hold."""

from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass, replace
from functools import cache
from typing import Any

from study.config.bounds import BOUND, Flag, Modules, Number, OneOf, SomeOf, Whole
from study.config.compose import CONF
from study.config.types import CellConfig, OptimizerConfig, optimizer_config
from study.vocabulary.optimizers import OPTIMIZERS


@cache
def known_keys() -> tuple[str, ...]:
    """The dotted keys that every cell has, and the groups."""
    keys: list[str] = []
    for field in fields(CellConfig):
        part: Any = OptimizerConfig if field.name == "optimizer" else field.type
        own = [f"{field.name}.{key.name}" for key in fields(part)] if is_dataclass(part) else []
        keys += own or [field.name]
    return (*keys, *sorted(folder.name for folder in CONF.iterdir() if folder.is_dir()))


def choices(key: str) -> list[str]:
    """The words that a dotted key may hold: those of its bound, of a flag and of no value.

    Empty for a key that does not exist or takes other values.
    """
    found: dict[str, None] = {}
    for field in _fields(key):
        found |= dict.fromkeys(_words(field.metadata.get(BOUND)))
        found |= dict.fromkeys(("true", "false") if field.type is bool else ())
        found |= dict.fromkeys(("null",) if field.default is None else ())
    return list(found)


def limits(key: str) -> str:
    """The range of the numbers that a dotted key may hold, such as ``at least 1``, or ``""``."""
    found = [_limits(field.metadata.get(BOUND)) for field in _fields(key)]
    return next(filter(None, found), "")


def _fields(key: str) -> Iterator[Field[Any]]:
    """The fields that a dotted key names: one, none, or that of each optimizer which has it."""
    group, _, name = key.rpartition(".")
    parts: list[Any] = [CellConfig]
    if group == "optimizer":
        parts = [optimizer_config(optimizer) for optimizer in OPTIMIZERS]
    elif group:
        parts = [field.type for field in fields(CellConfig) if field.name == group]
    for part in filter(is_dataclass, parts):
        yield from (field for field in fields(part) if field.name == name)


def _words(bound: Any) -> list[str]:
    match bound:
        case OneOf():
            return ["null" if choice is None else str(choice) for choice in bound.choices]
        case Flag():
            return ["true", "false", bound.word]
        case SomeOf():
            return ["all", *bound.choices]
        case Whole(word=str()):
            return [str(bound.word)]
        case Modules():
            return ["all-linear", "attention", "mlp"]
    return []


def _limits(bound: Any) -> str:
    match bound:
        case Whole():
            return f"at least {bound.least}" if abs(bound.least) < 2**32 else ""
        case Number():  # the largest numbers are beyond any use
            most = bound.most if bound.most is not None and bound.most < 1e6 else None
            return replace(bound, most=most).limits.replace("of at", "at")
    return ""
