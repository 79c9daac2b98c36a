"""Sentences that several figures print below their panels."""

import re
import textwrap
from collections.abc import Iterable

from study.vocabulary.quantities import BATCH_NAMES, TRAIN
from study.vocabulary.thresholds import CONFIDENCE

CI = f"{100 * CONFIDENCE:g} % CI"
EXPONENT = "scaling exponent with rank"
INTERVALS = {"seeds": f"{CI} over seeds", "ranks": "the straightness of the line (one seed)"}
"""The meaning of an interval, by the column ``interval`` of ``exponents``. With one seed it says
nothing about other seeds, so it has no confidence."""

FORMULA = re.compile(r"(?<!\\)\$[^$]*\$")
COMMAND, MARKUP = re.compile(r"\\[a-zA-Z]+ ?"), re.compile(r"\\[!,]|[${}^_\\]")
"""In a formula: parts that print as about one character, and parts without width."""


def sentence_on_ci(artists: str, kinds: Iterable[str]) -> str:
    """``Bands: 95 % CI over seeds.``; empty if no fit has an interval."""
    there = set(kinds)
    shown = " or ".join(text for kind, text in INTERVALS.items() if kind in there)
    return f"{artists}: {shown}." if shown else ""


def on_batch(batch: str = TRAIN) -> str:
    """``On the training batch.``: where the quantities of a figure were measured."""
    return f"On the {BATCH_NAMES.get(batch, batch)} batch."


def plain(text: str) -> str:
    """A wrapped text with names in it, as matplotlib prints it: a dollar would begin a formula."""
    return text.replace("$", r"\$")


def wrapped(text: str, width: int) -> str:
    """``text`` with line breaks, none of them within a formula, at ``width`` printed characters."""
    formulas = iter(FORMULA.findall(text))
    stand_ins = FORMULA.sub(lambda f: "\0" * len(MARKUP.sub("", COMMAND.sub("x", f[0]))), text)
    lines = textwrap.fill(stand_ins, width, break_long_words=False, break_on_hyphens=False)
    return re.sub("\0+", lambda _: next(formulas), lines)


def span(numbers: Iterable[int]) -> str:
    """``24``, or ``18–24`` if the numbers differ."""
    low, *_, high = sorted([*numbers] * 2)
    return str(low) if low == high else f"{low}–{high}"
