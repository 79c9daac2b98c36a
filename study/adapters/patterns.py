"""Regexes that others wrote, matched against module paths in bounded time and memory."""

import re
import time
import warnings
from collections.abc import Iterable
from math import prod
from typing import Any

import regex

from study.errors import StudyError, short

SECONDS = 1.0
"""The time that one set of patterns may take, for all paths."""
_LONGEST = 10_000
"""Characters."""
_MOST_REPEATS = 10_000
"""The product of the counts of a regex: a compiled regex can hold its parts as often."""
_COUNT = re.compile(r"\{(\d*),?(\d*)\}")


class PathPatterns:
    """Regexes for module paths. ``named``: what they are in errors, such as ``rank_pattern``.

    Python's ``re`` decides whether a regex is valid. The package ``regex`` matches it, because it
    has a limit of time. Raises :class:`StudyError` for a regex that is invalid or too large, and
    when compiling and matching all of them takes over :data:`SECONDS`.
    """

    def __init__(self, patterns: Iterable[str], named: str) -> None:
        self._named, self._left = named, SECONDS
        self._compiled = {pattern: self._timed(pattern, self._compile) for pattern in patterns}

    def match_whole(self, path: str) -> bool:
        """Whether one of them matches the whole path, as PEFT reads ``target_modules``."""
        return any(
            self._timed(pattern, whole.fullmatch, path)
            for pattern, (whole, _) in self._compiled.items()
        )

    def first_at_end(self, path: str) -> str | None:
        """The first that matches the path, or all of it after a dot, as PEFT reads the keys of
        ``rank_pattern``; None if no one does.
        """
        return next(
            (
                pattern
                for pattern, (_, end) in self._compiled.items()
                if self._timed(pattern, end.match, path)
            ),
            None,
        )

    def _compile(self, pattern: str, timeout: float) -> tuple[Any, Any]:
        counts = [int(n[:6]) for found in _COUNT.findall(pattern) for n in found if n]
        if len(pattern) > _LONGEST or prod(n for n in counts if n) > _MOST_REPEATS:
            raise StudyError(f"{self._named} has too large a regex, {short(pattern)}: shorten it")
        try:
            with warnings.catch_warnings(action="ignore"):  # of a set that may be meant otherwise
                re.compile(pattern)
            return regex.compile(pattern), regex.compile(rf"(.*\.)?({pattern})$")
        except (re.error, regex.error, RecursionError, OverflowError, ValueError) as error:
            raise StudyError(
                f"{self._named} has {short(pattern)}, which is not a valid regex ({error})"
            ) from None

    def _timed(self, pattern: str, act: Any, *arguments: str) -> Any:
        """``act(*arguments or the pattern)``, within the time that is left."""
        begin = time.monotonic()
        try:
            if self._left <= 0:
                raise TimeoutError
            return act(*(arguments or (pattern,)), timeout=self._left)
        except TimeoutError:
            raise StudyError(
                f"{self._named} takes over {SECONDS:g} s to match (at {short(pattern)}): write a "
                "simpler regex"
            ) from None
        finally:
            self._left -= time.monotonic() - begin
