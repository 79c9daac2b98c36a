"""Regexes that others wrote, matched against module paths in bounded time."""

import re
import warnings
from collections.abc import Iterable
from typing import Any

import regex

from study.errors import StudyError, short

SECONDS = 1.0
"""The time that one match may take."""


class PathPatterns:
    """Regexes for module paths. ``named``: what they are in errors, such as ``rank_pattern``.

    Python's ``re`` decides whether a regex is valid. The package ``regex`` matches it, because it
    has a limit of time. Raises :class:`StudyError` for a regex that is invalid or takes over
    :data:`SECONDS`.
    """

    def __init__(self, patterns: Iterable[str], named: str) -> None:
        self._named = named
        self._compiled = {pattern: self._compile(pattern) for pattern in patterns}

    def match_whole(self, path: str) -> bool:
        """Whether one of them matches the whole path, as PEFT reads ``target_modules``."""
        return any(self._matches(p, whole, path) for p, (whole, _) in self._compiled.items())

    def first_at_end(self, path: str) -> str | None:
        """The first that matches the path, or all of it after a dot, as PEFT reads the keys of
        ``rank_pattern``; None if no one does.
        """
        return next(
            (p for p, (_, end) in self._compiled.items() if self._matches(p, end, path)), None
        )

    def _compile(self, pattern: str) -> tuple[Any, Any]:
        try:
            with warnings.catch_warnings(action="ignore"):  # of a set that may be meant otherwise
                re.compile(pattern)
            return regex.compile(pattern), regex.compile(rf"(.*\.)?({pattern})$")
        except (re.error, regex.error, RecursionError, OverflowError, ValueError) as error:
            raise StudyError(
                f"{self._named} has {short(pattern)}, which is not a valid regex ({error})"
            ) from None

    def _matches(self, pattern: str, compiled: Any, path: str) -> bool:
        try:
            return compiled.fullmatch(path, timeout=SECONDS) is not None
        except TimeoutError:
            raise StudyError(
                f"{self._named} takes over {SECONDS:g} s to match (at {short(pattern)}): write a "
                "simpler regex"
            ) from None
