"""A configuration's keys, taken one by one and checked on the way: what nobody took has no counterpart here."""

import math
from collections.abc import Mapping
from typing import Any

from study.errors import StudyError


class Fields:
    """The keys of one configuration; ``where`` is what messages call it. Null is the same as not there.

    Every ``take`` method removes its key and raises :class:`StudyError` for a value of another type. A default that
    asks for something, and was taken for want of the key, is in ``assumed``.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.where = where
        self.assumed: list[str] = []
        self._left = {str(key): value for key, value in values.items() if value is not None}

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def require(self, *keys: str) -> None:
        """Raises :class:`StudyError` naming whichever of ``keys`` are not there."""
        if missing := [key for key in keys if self._left.get(key) in (None, "", [])]:
            verb = "is" if len(missing) == 1 else "are"
            raise StudyError(
                f"{self.where}: {', '.join(missing)} {verb} missing: add a value to import it"
            )

    def take(self, key: str, default: Any = None) -> Any:
        """The value of ``key`` as it stands."""
        if key not in self._left and default:
            self.assumed.append(f"{key} {default}")
        return self._left.pop(key, default)

    def take_text(self, key: str, default: str | None = None) -> str | None:
        """A string."""
        value = self.take(key, default)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, value, "is no text")
        return value

    def take_number(self, key: str, default: float | None = None) -> float | None:
        """A finite number; text such as ``2e-4``, which is no number to YAML 1.1, is read as one."""
        value = self.take(key, default)
        if value is None:
            return None
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise self.wrong(key, value, "is no number")
        return number

    def take_whole(self, key: str, default: int | None = None) -> int | None:
        """A whole number."""
        value = self.take_number(key, default)
        if value is not None and not value.is_integer():
            raise self.wrong(key, value, "is no whole number")
        return None if value is None else int(value)

    def take_count(self, key: str, default: int) -> int:
        """A whole number of at least 1."""
        value = self.take_whole(key, default)
        if value is None or value < 1:
            raise self.wrong(key, value, "is no count: give at least 1")
        return value

    def take_flag(self, key: str) -> bool:
        """True or false; false if it is not there."""
        value = self.take(key, False)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "is neither true nor false")
        return value

    def wrong(self, key: str, value: Any, what: str) -> StudyError:
        """The error for a value that is not what ``key`` takes."""
        return StudyError(f"{self.where}: {key}={value!r} {what}")

    def untaken(self) -> dict[str, Any]:
        """What is left and asks for something: false and empty values ask for nothing."""
        return {key: value for key, value in self._left.items() if value not in (False, "", [], {})}
