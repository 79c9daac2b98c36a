"""A configuration that someone else wrote, and its keys.

A reader takes the keys one by one, and each is checked when taken. Those that no reader takes are
noted (:func:`study.integrations.configs.experiment.note_rest`).
"""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from study.errors import StudyError, short
from study.reading import read_file, read_object

MOST_BYTES = 1 << 18
"""Of a file."""
MOST_VALUES = 20_000
"""Of a file, with every alias of YAML written out."""
_FIX = "give a YAML or JSON file"
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file.

    Raises :class:`StudyError` for any other file, and for a key that occurs twice in a mapping.
    """
    if path.suffix == ".json":
        values: Any = read_object(path, str(path), _FIX, MOST_BYTES)
    else:
        values = _load_yaml(path)
    if not isinstance(values, dict):
        wrong = "is empty" if values is None else "holds no keys"
        raise StudyError(f"{path} {wrong}: give a configuration")
    left, parts = MOST_VALUES, [values]
    while parts:  # aliases let a small file stand for billions of values
        part = parts.pop()
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        left -= 1
        if left < 0:
            raise StudyError(f"{path} stands for over {MOST_VALUES} values: give a smaller file")
    return values


def _load_yaml(path: Path) -> Any:
    content = read_file(path, str(path), _FIX, MOST_BYTES)
    try:
        return yaml.load(content.decode("utf-8-sig"), Loader=_Loader)
    except UnicodeDecodeError:
        raise StudyError(f"{path} is not UTF-8 text: {_FIX}") from None
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise StudyError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


class _Loader(_SafeLoader):
    """The safe loader, which makes no Python objects. A key may occur once in a mapping."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((key for key in keys if keys.count(key) > 1 and key != "<<"), None):
            raise yaml.YAMLError(f"it has the key {short(twice)} twice: keep one of them")
        return dict(super().construct_mapping(node, deep))


class Fields:
    """The keys of one configuration. Messages call it ``where``. A null value is a missing key.

    Every ``take`` method removes its key and raises :class:`StudyError` for a value of another
    type. If the key is missing and its default is neither empty nor false, ``assumed`` lists it.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.where = where
        self.assumed: list[str] = []
        self._left = {str(key): value for key, value in values.items() if value is not None}

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def require(self, *keys: str) -> None:
        """Raises :class:`StudyError` that names the missing ones of ``keys``."""
        if missing := [key for key in keys if self._left.get(key) in (None, "", [])]:
            verb = "is" if len(missing) == 1 else "are"
            raise StudyError(
                f"{self.where}: {', '.join(missing)} {verb} missing: add a value to import it"
            )

    def take(self, key: str, default: Any = None) -> Any:
        """The value of ``key``, unchecked."""
        if key not in self._left and default:
            self.assumed.append(f"{key} {default}")
        return self._left.pop(key, default)

    def take_text(self, key: str, default: str | None = None) -> str | None:
        """A string."""
        value = self.take(key, default)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, value, "is not a string")
        return value

    def take_number(self, key: str, default: float | None = None) -> float | None:
        """A finite number. YAML 1.1 reads ``2e-4`` as a string; it is converted."""
        value = self.take(key, default)
        if value is None:
            return None
        try:
            number = float(value) if isinstance(value, int | float | str) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if isinstance(value, bool):
            number = math.nan
        if not math.isfinite(number):
            raise self.wrong(key, value, "is not a number")
        return number

    def take_whole(self, key: str, default: int | None = None) -> int | None:
        """An integer."""
        value = self.take_number(key, default)
        if value is not None and not value.is_integer():
            raise self.wrong(key, value, "is not an integer")
        return None if value is None else int(value)

    def take_count(self, key: str, default: int) -> int:
        """An integer of at least 1."""
        value = self.take_whole(key, default)
        if value is None or value < 1:
            raise self.wrong(key, value, "is too small: give at least 1")
        return value

    def take_share(self, key: str) -> float | None:
        """A number from 0 to 1."""
        value = self.take_number(key)
        if value is not None and not 0 <= value <= 1:
            raise self.wrong(key, value, "is not between 0 and 1")
        return value

    def take_list(self, key: str) -> list[str] | None:
        """Strings, of a list or separated by commas."""
        names = self.take_names(key)
        return [name.strip() for name in names.split(",")] if isinstance(names, str) else names

    def take_one_of(self, key: str, choices: Collection[Any]) -> Any:
        """One of ``choices``, of the same type; None if the key is missing."""
        value = self.take(key)
        if value is not None and not any(
            type(value) is type(choice) and value == choice for choice in choices
        ):
            names = ", ".join(str(choice) for choice in choices)
            raise self.wrong(key, value, f"is not understood: give one of {names}, or remove it")
        return value

    def take_names(self, key: str) -> str | list[str] | None:
        """A string or a list of strings."""
        value = self.take(key)
        names = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(name, str) for name in names):
            raise self.wrong(key, value, "is neither a string nor a list of strings")
        return value

    def take_mapping(self, key: str) -> dict[str, Any]:
        """A mapping; empty if the key is missing."""
        value = self.take(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, value, "is not a mapping of keys to values")
        return value or {}

    def take_flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "is neither true nor false")
        return value

    def wrong(self, key: str, value: Any, what: str) -> StudyError:
        """The error for a wrong value of ``key``."""
        return StudyError(f"{self.where}: {key}={short(value)} {what}")

    def untaken(self) -> dict[str, Any]:
        """The keys that are left."""
        return dict(self._left)
