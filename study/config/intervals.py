"""How often something happens: after so many steps, or after so much time."""

import math
import re
from dataclasses import dataclass
from typing import Any

from study.errors import StudyError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_TIME = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)([smh])", re.ASCII)


@dataclass(frozen=True)
class Interval:
    """Either a number of ``steps`` or a number of ``seconds``; the other one is None."""

    steps: int | None = None
    seconds: float | None = None


def interval(key: str, value: Any) -> Interval:
    """The interval that ``value`` names: a whole number of steps, or a time such as ``60s``.

    Raises :class:`StudyError`, naming ``key``, for anything else, and for 0.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return Interval(steps=value)
    if isinstance(value, str) and (found := _TIME.fullmatch(value)):
        seconds = float(found[1]) * _SECONDS[found[2]]
        if 0 < seconds < math.inf:
            return Interval(seconds=seconds)
    raise StudyError(
        f"{key}={value} is no interval: give a time such as 60s, 10m or 1h, "
        "a number of steps of at least 1, or null"
    )


@dataclass(frozen=True)
class Every:
    """The bound of a field that holds an interval, or null: never."""

    def check(self, key: str, value: Any) -> None:
        """Raises :class:`StudyError` as :func:`interval` does."""
        if value is not None:
            interval(key, value)
