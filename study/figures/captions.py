"""Sentences that several figures print below their panels."""

import re
import textwrap
from collections.abc import Iterable
from typing import Any

import pandas as pd

from study.analysis.grouping import seed_numbers
from study.errors import count_noun, printable
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import BATCH_NAMES, TRAIN
from study.vocabulary.sources import model_label
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


def settings(cells: pd.DataFrame) -> str:
    """The settings of the cells of a figure, on one line. A setting that varies is ``several``."""
    steps = _one(cells, "steps", "{:g} steps", "numbers of steps")
    precision = _one(cells, "precision", "{}", "precisions")
    parts = [
        _one(cells, "model", "{}", "models", model_label),
        _one(cells, "data", "{}", "data sets"),
        _one(cells, "optimizer", "{}", "optimizers", label),
        _one(cells, "lr", "learning rate {:g}", "learning rates"),
        _one(cells, "alpha", "α = {:g}", "values of α"),
        _batch(cells),
        "" if precision == "float32" else precision,
        count_noun(len(set(seed_numbers(cells))), "seed"),
        "1 step" if steps == "1 steps" else steps,
    ]
    return ", ".join(part for part in parts if part)


def _one(
    cells: pd.DataFrame, column: str, form: str, plural: str, name: Any = lambda value: value
) -> str:
    """The value of a column in its ``form``; ``several`` of its ``plural``; empty if unknown."""
    found = list(cells[column].dropna().unique()) if column in cells else []
    if not found:
        return ""
    return printable(form.format(name(found[0]))) if len(found) == 1 else f"several {plural}"


def _batch(cells: pd.DataFrame) -> str:
    """``batch 4 × 48 tokens``: sequences of an optimizer step times their length."""
    if "batch_size" not in cells:
        return ""
    accumulated = cells["accumulation"].fillna(1) if "accumulation" in cells else 1
    sequences = _one(cells.assign(n=cells["batch_size"] * accumulated), "n", "{:g}", "batch sizes")
    tokens = _one(cells, "sequence_length", " × {:g} tokens", "sequence lengths")
    if not sequences or sequences.startswith("several"):
        return sequences
    if tokens.startswith("several"):
        return f"batch {sequences}, {tokens}"
    return f"batch {sequences}{tokens or ' sequences'}"
