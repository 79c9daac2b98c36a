"""A YAML or JSON file that someone else wrote, as a mapping of bounded size.

Aliases let a small YAML file stand for billions of values, so values are counted before any is
made. YAML's safe loader refuses tags of Python objects.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from study.errors import StudyError, short
from study.reading import read_file, read_object

MOST_BYTES = 1 << 18
"""Of a file."""
MOST_VALUES = 20_000
"""Of a document, with every alias written out."""
MOST_LEVELS = 40
"""Of values inside each other."""
_FIX = "give a YAML or JSON file"
_KINDS = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file.

    Raises :class:`StudyError` for any other file, for a key that occurs twice in a mapping, and for
    values that are too many or too deep.
    """
    if path.suffix == ".json":
        values = read_object(path, str(path), _FIX, MOST_BYTES)
        _check_size(values, path)
        return values
    content = read_file(path, str(path), _FIX, MOST_BYTES)
    try:
        text = content.decode("utf-8-sig")
        _check_size(yaml.compose(text, Loader=_Loader), path)
        values = yaml.load(text, Loader=_Loader)
    except UnicodeDecodeError:
        raise StudyError(f"{path} is not UTF-8 text: {_FIX}") from None
    except StudyError:
        raise
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise StudyError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        held = _KINDS.get(type(values), "a value")
        wrong = "is empty" if values is None else f"holds {held} instead of keys"
        raise StudyError(f"{path} {wrong}: give a configuration")
    return values


def _check_size(document: Any, path: Path) -> None:
    """Raises :class:`StudyError` if a document is too large, or holds itself."""
    try:
        _Measure(path).of(document)
    except RecursionError:
        raise _too_deep(path) from None


def _too_deep(path: Path) -> StudyError:
    return StudyError(f"{path} is nested over {MOST_LEVELS} levels deep: give a flatter file")


class _Measure:
    """The number of values below a value or a YAML node, and of their levels.

    A node that aliases stand for is measured once and counted as often as it is named.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[int, tuple[int, int] | None] = {}

    def of(self, value: Any) -> tuple[int, int]:
        if id(value) not in self.known:
            self.known[id(value)] = None  # until its parts are measured
            self._check_keys(value)
            parts = [self.of(part) for part in _parts(value)]
            size = 1 + sum(count for count, _ in parts)
            levels = 1 + max((level for _, level in parts), default=0)
            self.known[id(value)] = size, levels
            if size > MOST_VALUES:
                raise StudyError(
                    f"{self.path} stands for over {MOST_VALUES} values: give a smaller file"
                )
            if levels > MOST_LEVELS:
                raise _too_deep(self.path)
        measured = self.known[id(value)]
        if measured is None:
            raise StudyError(f"{self.path} has an alias inside its own anchor: write it out")
        return measured

    def _check_keys(self, value: Any) -> None:
        if not isinstance(value, yaml.MappingNode):
            return
        keys = Counter(key.value for key, _ in value.value if isinstance(key, yaml.ScalarNode))
        for key, count in keys.items():
            if count > 1 and key != "<<":
                raise StudyError(f"{self.path} has the key {short(key)} twice: keep one of them")


def _parts(value: Any) -> Sequence[Any]:
    if isinstance(value, yaml.MappingNode):
        return [part for pair in value.value for part in pair]
    if isinstance(value, yaml.SequenceNode):
        return list(value.value)
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else ()
