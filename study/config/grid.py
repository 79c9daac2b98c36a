"""The alternatives of a swept key, counted before they are made."""

from collections.abc import Sequence
from itertools import islice
from math import prod

from hydra.core.override_parser.types import Override, RangeSweep

from study.errors import StudyError, given, short

MOST_CELLS = 100_000
"""Of one sweep."""


MOST_CHARACTERS = 20_000
"""Of an override on the command line. Hydra takes seconds to parse a longer one."""


def check_lengths(overrides: Sequence[str]) -> None:
    """Raise :class:`StudyError` for an override of over :data:`MOST_CHARACTERS`."""
    for override in overrides:
        if len(override) > MOST_CHARACTERS:
            raise StudyError(
                f"{given(override)} has over {MOST_CHARACTERS} characters: put it into a file of "
                "the configuration (--config-dir), or use range(...)"
            )


def alternatives(override: Override) -> list[str]:
    """The values of a swept override, each as an override's text has it.

    Raises :class:`StudyError` if there is none, or more than :data:`MOST_CELLS`.
    """
    swept = override.value()
    # A shuffled range is made as a whole; counting a part of it is enough.
    values = swept.range() if isinstance(swept, RangeSweep) else override.sweep_iterator()
    count = sum(1 for _ in islice(values, MOST_CELLS + 1))
    swept_as = f"{override.get_key_element()}={given(override.get_value_string())}"
    if count == 0:
        raise StudyError(f"{swept_as} has no values to sweep over: give at least one")
    if count > MOST_CELLS:
        raise StudyError(f"{swept_as} has over {MOST_CELLS} values: give fewer")
    return list(override.sweep_string_iterator())


def check_count(axes: Sequence[Sequence[str]]) -> None:
    """Raise :class:`StudyError` if all combinations of ``axes`` are over :data:`MOST_CELLS`."""
    count = prod(map(len, axes))
    if count > MOST_CELLS:
        factors = " x ".join(f"{len(axis)}" for axis in axes)
        raise StudyError(
            f"the sweep has {short(count)} cells ({factors}): give at most {MOST_CELLS}"
        )
