"""The kinds of values that a configuration holds, for pydantic, and the line about a wrong one."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

from study.errors import StudyError, given, short, unknown

MISSING: Any = "???"
"""OmegaConf's mark for a value that is not set. It is written out here because the types of the
configuration are also read where OmegaConf can't be imported, such as beside Axolotl."""
KEY = "{key}"
"""Stands for the key in the message of a check. :func:`read` replaces it by the key."""
LARGEST = 2**63 - 1
"""The largest whole number that files and tensors hold."""
LARGEST_FLOAT = 3e38
"""The largest number that float32 holds. Tensors are multiplied by the numbers of a cell."""
LONGEST_NAME = 200
"""Bytes of a folder's name. File systems allow 255; the rest is for endings."""

Check = Callable[[Any], Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Checked:
    """What a value must satisfy beside its type, as a part of ``Annotated``.

    - ``check``: returns the value, or raises :class:`StudyError` with :data:`KEY` in its message;
    - ``words``: the words that it may be, for help and completion.
    """

    check: Check
    words: tuple[str, ...] = ()

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))


def one_of(choices: Collection[Any]) -> Checked:
    """One of a few values. A row that a table gets later is one of them too."""

    def words() -> tuple[str, ...]:
        return tuple("null" if choice is None else str(choice) for choice in choices)

    def check(value: Any) -> Any:
        if value not in choices:
            raise unknown(KEY, value, words())
        return value

    return Checked(check, words())


def some_of(choices: Collection[str]) -> Checked:
    """``all``, one of a few names, or a list of them, which may not be empty (:func:`chosen`)."""

    def check(value: Any) -> Any:
        if not chosen(KEY, value, choices):
            raise StudyError(
                f"{KEY}={short(value)} chooses nothing: give at least one of {', '.join(choices)}"
            )
        return value

    return Checked(check, ("all", *choices))


def whole_or(least: int, *words: Any) -> Checked:
    """A whole number from ``least``, or one of a few words or flags."""

    shown = tuple("null" if word is None else str(word).lower() for word in words)

    def check(value: Any) -> Any:
        if is_whole(value) and least <= value <= LARGEST:
            return value
        if not any(value is word or (isinstance(word, str) and value == word) for word in words):
            raise StudyError(
                f"{KEY}={short(value)} is out of range: give a whole number of at least {least}, "
                f"or {', '.join(shown)}"
            )
        return value

    return Checked(check, shown)


def flag_or(word: str) -> Checked:
    """true, false, or the word ``word``."""

    def check(value: Any) -> Any:
        if not isinstance(value, bool) and value != word:
            raise unknown(KEY, value, ("true", "false", word))
        return value

    return Checked(check, ("true", "false", word))


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


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_folder_name(name: str, key: str = KEY) -> str:
    """The name of a folder that is made inside another one, such as that of a study."""
    wrong = {
        "is empty": not name,
        "is not the name of a folder": name in (".", ".."),
        "has a slash or a backslash": "/" in name or "\\" in name,
        "has characters that can't be printed": not name.isprintable(),
        "starts or ends with a space": name != name.strip(),
        f"is longer than {LONGEST_NAME} bytes": len(name.encode(errors="replace")) > LONGEST_NAME,
    }
    if why := next((words for words, is_so in wrong.items() if is_so), None):
        raise StudyError(
            f"{key}={short(name)} {why}: give one name of a folder, such as {key}=quick"
        )
    return name


def check_path(path: str, key: str = KEY) -> str:
    """A path that the operating system accepts: not empty, without null bytes, not too long."""
    if not path or "\0" in path or len(path) > 4000 or max(map(len, path.split("/"))) > 255:
        raise StudyError(f"{key}={short(path)} is not a path: give the path of a file")
    return path


def check_rank(value: Any, most: int) -> Any:
    """A positive integer, or infinity."""
    if value in (math.inf, "inf"):  # a string in a YAML file; Hydra's command line makes it a float
        return math.inf
    if not is_whole(value) or value < 1:
        raise StudyError(
            f"{KEY}={given(value)}: rank must be a positive integer or inf, such as {KEY}=16"
        )
    if value > most:
        raise StudyError(
            f"{KEY}={short(value)} is too large: give at most {most}, or inf, the limit"
        )
    return value


def check_modules(value: Any) -> Any:
    """Names of modules: a word, a regex, or a list of names."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        what = "is neither a name nor a list of names"
    elif not names or not all(names):
        what = "is empty or holds an empty name"
    else:
        return value
    raise StudyError(
        f"{KEY}={short(value)} {what}: give all-linear, attention, mlp, a list such as "
        "[q_proj,v_proj], or a regex"
    )


def check_steps_or_share(value: Any, most: int) -> Any:
    """A whole number of steps from 0 to ``most``, or a share of all steps: a number below 1."""
    is_share = isinstance(value, float) and 0.0 <= value < 1.0
    if not is_share and not (is_whole(value) and 0 <= value <= most):
        raise StudyError(
            f"{KEY}={given(value)} is out of range: give a whole number of steps of at most "
            f"{most}, or a share of all steps from 0 to below 1, such as {KEY}=0.1"
        )
    return value


@dataclass(frozen=True)
class Interval:
    """Either a number of ``steps`` or a number of ``seconds``; the other one is None."""

    steps: int | None = None
    seconds: float | None = None


def interval(key: str, value: Any) -> Interval:
    """The interval that ``value`` names: a whole number of steps, or a time such as ``60s``.

    Raises :class:`StudyError`, naming ``key``, for anything else, and for 0.
    """
    if is_whole(value) and value >= 1:
        return Interval(steps=value)
    if isinstance(value, str) and (found := _TIME.fullmatch(value)):
        seconds = float(found[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[found[2]]
        if 0 < seconds < math.inf:
            return Interval(seconds=seconds)
    raise StudyError(
        f"{key}={value} is no interval: give a time such as 60s, 10m or 1h, "
        "a number of steps of at least 1, or null"
    )


_TIME = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)([smh])", re.ASCII)


def check_interval(value: Any) -> Any:
    """An interval, or null: never."""
    if value is not None:
        interval(KEY, value)
    return value


def _no_flag(value: Any) -> Any:
    """Python and pydantic take true for 1."""
    if isinstance(value, bool):
        raise StudyError(f"{KEY}={str(value).lower()} is out of range: give a number")
    return value


def _as_text(value: Any) -> Any:
    """Hydra reads ``name=3`` as a number."""
    return str(value) if isinstance(value, int | float) else value


Text = Annotated[str, BeforeValidator(_as_text)]
FilePath = Annotated[Text, Checked(check_path)]
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
    r"""``value`` as a config has to hold it, so that no interpolation in it is resolved.

    Text of a file that someone else wrote may name a variable of the environment, such as a token.
    Lists and dictionaries are escaped inside.

    >>> literal(["${oc.env:HF_TOKEN}", 1])
    ['\\${oc.env:HF_TOKEN}', 1]
    """
    if isinstance(value, str):
        # Two backslashes before an interpolation stand for one, and one makes it text.
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, dict):
        return {literal(key): literal(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [literal(part) for part in value]
    return value


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read(kind: type[T], values: Any, prefix: str = "") -> T:
    """A dataclass from a nested dictionary: every value is converted to its type and checked.

    ``prefix``: of its keys in messages. Raises :class:`StudyError`, one line, for the first value
    that is missing, unknown or wrong.
    """
    try:
        found: T = _adapter(kind).validate_python(values)  # type: ignore[arg-type]
    except ValidationError as error:
        raise StudyError(_line(error, prefix)) from None
    except OverflowError:
        raise StudyError(f"a number of {prefix or 'the configuration'} is out of range") from None
    if missing := next(_missing(found, prefix), None):
        raise StudyError(f"{missing} is not set: give {missing}=... on the command line")
    return found


def _missing(config: Any, prefix: str) -> Iterator[str]:
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _missing(value, f"{prefix}{field.name}.")
        elif isinstance(value, str) and value == MISSING:
            yield prefix + field.name


LIMITS = {
    "greater_than": "above {gt:g}",
    "greater_than_equal": "of at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "of at most {le:g}",
    "finite_number": "that is finite",
}
"""What a number has to be, by pydantic's type of the error."""


def _line(error: ValidationError, prefix: str) -> str:
    first = error.errors(include_url=False)[0]
    where, context = first["loc"], first.get("ctx", {})
    key = prefix + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    key = key.replace("..", ".").removeprefix(".")
    value, kind = first["input"], first["type"]
    if kind == "value_error":
        return str(context["error"]).replace(KEY, key.removesuffix(".name"))
    if kind == "missing":
        return f"{key} is not set: give {key}=..."
    if kind == "unexpected_keyword_argument":
        return f"unknown key {key}"
    if kind in LIMITS:
        limit = LIMITS[kind].format(**context)
        return f"{key}={short(value)} is out of range: give a number {limit}"
    return f"{key}={short(value)}: {first['msg']}".replace("Input should be", "give")
