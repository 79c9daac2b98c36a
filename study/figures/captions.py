"""Sentences that several figures print below their panels."""

from collections.abc import Iterable

from study.vocabulary.thresholds import CONFIDENCE

CI = f"{CONFIDENCE:.0%} CI"

EXPONENT = "scaling exponent with rank"

SOURCES = {
    "seeds": "over seeds",
    "ranks": "from ranks only (one seed)",
    "none": "missing with two ranks",
}
"""By the values of the column ``interval`` of ``exponents``."""


def ci(kinds: Iterable[str]) -> str:
    """``95% CI over seeds``: the intervals of a figure and what they are computed from."""
    there = set(kinds)
    return f"{CI} {' or '.join(text for kind, text in SOURCES.items() if kind in there)}"


def sentence_on_ci(artists: str, kinds: Iterable[str]) -> str:
    """``Bands: 95% CI over seeds.``; empty if no fit has an interval."""
    known = set(kinds) - {"none"}
    return f"{artists}: {ci(known)}." if known else ""


def span(numbers: Iterable[int]) -> str:
    """``24``, or ``18–24`` if the numbers differ."""
    low, *_, high = sorted([*numbers] * 2)
    return str(low) if low == high else f"{low}–{high}"
