"""The numbers of a row of ``exponents``, and settings, as text: the same in every view."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from study.analysis.grouping import RULE, curve_columns, distinguishing, seed_numbers
from study.errors import count_noun, printable
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import BATCH_NAMES, TRAIN
from study.vocabulary.scaling import rule_label
from study.vocabulary.sources import model_label
from study.vocabulary.thresholds import CONFIDENCE

INTERVAL = f"{100 * CONFIDENCE:g} % interval"
STRAIGHTNESS = "straightness of the line, one seed"
"""What the brackets after a slope show if there is one seed."""
TESTED = (
    "Verdicts are stricter than the intervals, because many quantities are tested at once (Holm)."
)
"""How verdicts are tested, for the text below a table."""
COMMON = "common setting"
"""The name of the setting with the most frequent value of every key."""
BRACKETS = {"seeds": INTERVAL, "ranks": STRAIGHTNESS}
"""What brackets show, by the value of the column ``interval``."""


def factor_text(factor: float) -> str:
    """``×0.74``: the factor from the lowest to the highest rank; empty if NaN."""
    if pd.isna(factor):
        return ""
    if 0.1 <= factor < 9.995:
        return f"×{factor:.2f}"
    return f"×{factor:.0f}" if 1 < factor < 1e4 else f"×{factor:.2g}"


def bend_text(row: Any) -> str:
    """``bent: -0.10 at the lowest ranks, -0.39 at the highest``; empty if the line is straight."""
    if not row.bent:
        return ""
    low, high = number_text(row.slope_low), number_text(row.slope_high)
    return f"bent: {low} at the lowest ranks, {high} at the highest"


def number_text(value: float) -> str:
    """A number with two decimal places; empty if NaN."""
    return "" if pd.isna(value) else interval_text(value, float("nan"), float("nan"))


def batch_words(batches: Iterable[str]) -> dict[str, str]:
    """How a verdict names each batch of a study; the training batch alone needs no words."""
    found = list(dict.fromkeys(map(str, batches)))
    return {
        batch: "" if found == [TRAIN] else f"{BATCH_NAMES.get(batch, batch)} batch"
        for batch in found
    }


def setting_text(value: Any) -> str:
    """The value of a setting: ``none`` if missing, 1048576 and not 1.04858e+06, but 1e+30."""
    if pd.isna(value):
        return "none"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and value < 1e9 else f"{value:g}"
    return str(value)


def setting_names(settings: Sequence[Sequence[str]]) -> list[str]:
    """A name for each of some settings: its unusual words, or all of them if it has up to two. One
    of usual words only is :data:`COMMON`."""
    count = Counter(word for words in settings for word in words)
    rare = [[word for word in words if 2 * count[word] <= len(settings)] for words in settings]
    has_all = all(rare) or len(settings) < 2 or max(map(len, settings)) <= 2
    names = settings if has_all else [words or [COMMON] for words in rare]
    return list(map(", ".join, names))


MAY_BE_MISSING = ("contraction", "alpha")
"""Settings that some runs lack: float32 has no contraction, and full fine-tuning has no alpha."""


def setting_labels(rows: pd.DataFrame, columns: Iterable[str]) -> list[str]:
    """By row the name of its setting, from the values of ``columns``; empty without columns."""
    names, words = list(columns), []
    for row in rows.to_dict("records"):
        known = [name for name in names if name not in MAY_BE_MISSING or pd.notna(row[name])]
        words.append(tuple(f"{name}={setting_text(row[name])}" for name in known))
    settings = list(dict.fromkeys(words))
    named = dict(zip(settings, setting_names(settings), strict=True))
    return [named[one] for one in words]


def curve_settings(rows: pd.DataFrame) -> list[str]:
    """By row the settings that separate its curve from the others: ``lr=0.001``."""
    return setting_labels(rows, distinguishing(rows, curve_columns(rows)))


def rule_names(rows: pd.DataFrame) -> list[str]:
    return [rule_label(*rule) for rule in rows[list(RULE)].to_numpy()]


def curve_names(rows: pd.DataFrame, settings: Iterable[str]) -> list[str]:
    """By row optimizer, rule and setting: ``AdamW, rsLoRA, lr=0.001``."""
    parts = zip(rows["optimizer"].astype(str).map(label), rule_names(rows), settings, strict=True)
    return [", ".join(filter(None, part)) for part in parts]


def bracket_head(rows: pd.DataFrame) -> str:
    """What the brackets after the slopes of ``rows`` show, if it is one thing."""
    kinds = [kind for kind in BRACKETS if (rows["interval"] == kind).any()]
    return BRACKETS[kinds[0]] if len(kinds) == 1 else ""


def bracket_notes(rows: pd.DataFrame) -> list[str]:
    """What the brackets after the slopes of ``rows`` show, in sentences."""
    notes = []
    seeds = sorted(set(rows.loc[rows["interval"] == "seeds", "seeds"]))
    if seeds:
        over = " or ".join(f"{n:g}" for n in seeds)
        notes.append(f"Brackets are {INTERVAL}s over {over} seeds.")
    if (rows["interval"] == "ranks").any():
        which = "Brackets of rows with one seed" if seeds else "Brackets"
        notes.append(
            f"{which} show the {STRAIGHTNESS}. They do not say how much another seed would differ."
        )
    if (rows["interval"] == "none").any():
        notes.append("A slope without brackets has one seed and two ranks.")
    return notes


STEEP_MARK = " †"
"""After an interval of a best rate that may be off by more than it says."""


def rate_notes(rows: pd.DataFrame) -> list[str]:
    """:func:`bracket_notes` of rows of :func:`~study.analysis.rates.rate_transfer`."""
    notes = bracket_notes(rows)
    if ((rows["interval"] == "seeds") & (rows["df"] > rows["seeds"] - 1)).any():
        notes.append("With two seeds, their scatter is pooled over ranks and rules.")
    if rows["steep"].any():
        notes.append(
            "†: of three rates at a rank with a steeper basin than the others. Its best rate may "
            "be too low, and no interval contains this error: train a rate between them."
        )
    return notes


def interval_text(value: float, low: float, high: float, places: int = 2) -> str:
    """``-0.50 [-0.52, -0.48]``, or ``-0.50`` without an interval."""
    shown, *bounds = (rounded(number, places) for number in (value, low, high))
    return shown if pd.isna(low) or pd.isna(high) else f"{shown} [{', '.join(bounds)}]"


def rounded(value: float, places: int = 2) -> str:
    """A number with a fixed number of decimal places; never ``-0.00``."""
    return f"{round(value, places) + 0.0:.{places}f}"


def settings(cells: pd.DataFrame) -> str:
    """The settings of cells on one line. A setting that varies is ``several``."""
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
