"""Types of configuration values for pydantic, and the message about a wrong value."""

import re
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from study.errors import StudyError, short, unknown

MISSING: Any = "???"
"""OmegaConf's mark for a missing value, repeated because Axolotl can't import OmegaConf."""
KEY = "{key}"
"""Placeholder for the key in the message of a check. :func:`read` replaces it."""
LARGEST = 2**63 - 1
"""The largest whole number that files and tensors hold."""
LARGEST_FLOAT = 3e38
"""The largest number that float32 holds. Tensors are multiplied by the numbers of a cell."""
LONGEST_NAME = 200
"""The most bytes of a folder's name. File systems allow 255; the rest is for suffixes."""

T = TypeVar("T")


def one_of(choices: Collection[Any]) -> AfterValidator:
    """One of a few values, or one of the keys that a table has when a value is checked."""

    def check(value: Any) -> Any:
        if (type(value), value) not in [(type(each), each) for each in choices]:  # 1 == True
            raise unknown(KEY, value, map(word, choices))
        return value

    return AfterValidator(check)


def word(value: Any) -> str:
    """A choice as YAML writes it."""
    text = "null" if value is None else str(value)
    return text.lower() if isinstance(value, bool) else text


def some_of(choices: Collection[str]) -> AfterValidator:
    """``all``, one of a few names, or a list of them, which may not be empty (:func:`chosen`)."""

    def check(value: Any) -> Any:
        if not chosen(KEY, value, choices):
            raise StudyError(f"{KEY} chooses nothing: give at least one of {', '.join(choices)}")
        return value

    return AfterValidator(check)


def whole_or(least: int, *words: Any) -> AfterValidator:
    """A whole number of at least ``least``, one of a few words, or null."""

    def check(value: Any) -> Any:
        if value in words or (is_whole(value) and least <= value <= LARGEST):
            return value
        choices = f"a whole number of at least {least}, or {', '.join(map(word, words))}"
        raise StudyError(f"{KEY}={short(value)} is out of range: give {choices}")

    return AfterValidator(check)


def chosen(
    key: str, value: Any, choices: Iterable[str], usual: Iterable[str] | None = None
) -> tuple[str, ...]:
    """The members of ``choices`` that ``value``, a name or a list, selects. ``all`` means
    ``usual``."""
    names = tuple(choices)
    wanted = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    for name in wanted:
        if name not in ("all", *names):
            raise unknown(key, name, ("all", *names))
    everything = tuple(names if usual is None else usual) if "all" in wanted else ()
    return tuple(name for name in names if name in wanted or name in everything)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_folder_name(name: str, key: str = KEY) -> str:
    """The name of a folder that is made inside another one, such as that of a study."""
    is_name = name != MISSING and name.isprintable() and name.strip(" .") and name == name.strip()
    if not is_name or re.search(r"[/\\]", name) or len(name.encode()) > LONGEST_NAME:
        why = f"{key}={short(name)} is not the name of one folder of at most {LONGEST_NAME} bytes"
        raise StudyError(f"{why}: give a name such as {key}=quick")
    return name


def interval(key: str, value: Any) -> int | float:
    """A whole number of steps, or the seconds of a time such as ``60s``."""
    if is_whole(value) and value >= 1:
        return int(value)
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,12})?)([smh])", str(value), re.ASCII)
    seconds = float(found[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[found[2]] if found else 0.0
    if seconds == 0:
        choices = "a time such as 60s, 10m or 1h, a number of steps of at least 1, or null"
        raise StudyError(f"{key}={value} is no interval: give {choices}")
    return seconds


def _no_flag(value: Any) -> Any:
    """Python and pydantic take true for 1."""
    return word(value) if isinstance(value, bool) else value


Whole = Annotated[int, BeforeValidator(_no_flag), Field(ge=-LARGEST - 1, le=LARGEST)]
Count = Annotated[Whole, Field(ge=1)]
Real = Annotated[
    float,
    BeforeValidator(_no_flag),
    Field(allow_inf_nan=False, ge=-LARGEST_FLOAT, le=LARGEST_FLOAT),
]
Positive = Annotated[Real, Field(gt=0)]
Share = Annotated[Real, Field(ge=0, lt=1)]


def literal(value: Any) -> Any:
    r"""``value`` escaped for a config, so that no interpolation in it is resolved.

    Text from others could name a variable of the environment, such as a token. Lists and
    dictionaries are escaped inside.

    >>> literal(["${oc.env:HF_TOKEN}", 1])
    ['\\${oc.env:HF_TOKEN}', 1]
    """
    if isinstance(value, str):
        # Two backslashes before an interpolation mean one backslash; one makes it text.
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, dict):
        return {literal(key): literal(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [literal(part) for part in value]
    return value


def written(value: Any) -> str:
    r"""``value`` so that Hydra reads it back unchanged after ``key=``. Interpolations stay text.

    >>> written(["a b", None, True, 1e-05, "${oc.env:HOME}"])
    "['a b',null,true,1e-05,'\\${oc.env:HOME}']"
    """
    if isinstance(value, list | tuple):
        return f"[{','.join(map(written, value))}]"
    if not isinstance(value, str):
        return word(value)
    is_word = re.fullmatch(r"[a-z_/][\w./-]*", value, re.ASCII | re.IGNORECASE)
    if is_word and value.lower() not in ("true", "false", "null", "nan", "inf"):
        return value
    # As Hydra quotes a text: backslashes before a quote, or at the end, are doubled.
    doubled = re.sub(r"(\\+)(?='|\Z)", r"\1\1", literal(value))
    return "'" + doubled.replace("'", r"\'") + "'"


_adapter = cache(TypeAdapter)


def read(kind: type[T], values: Any, prefix: str = "") -> T:
    """A dataclass from a nested dictionary, checked. ``prefix``: before its keys in messages."""
    try:
        found: T = _adapter(kind).validate_python(values)  # type: ignore[arg-type]
    except ValidationError as error:
        raise StudyError(_line(error, prefix)) from None
    return found


def _line(error: ValidationError, prefix: str) -> str:
    first = error.errors(include_url=False)[0]
    value, kind, said = first["input"], first["type"], first["msg"]
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    key = prefix + "".join(parts).removeprefix(".")
    if kind == "missing":
        return f"{key} is not set: give {key}=..."
    if isinstance(value, str) and value == MISSING:
        return f"{key} is not set: give {key}=... (~{key} removes what a cell needs)"
    if kind == "value_error":
        return str(first["ctx"]["error"]).replace(KEY, key.removesuffix(".name"))
    if kind == "unexpected_keyword_argument":
        return f"unknown key {key}"
    return f"{key}={short(value)}: {said}".replace(": Input should", " should")
