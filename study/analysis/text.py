"""How sentences and tables print names, numbers, settings, quantities and tables."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from study.analysis.grouping import curve_labels, end_steps
from study.analysis.wording import TESTED, interval_text, number_text, rule_names, setting_text
from study.errors import printable
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import PRIMARY, QUANTITIES, SITES, STATS
from study.vocabulary.scaling import POWER, RULES, rule_formula
from study.vocabulary.thresholds import STABLE_RATIO
from study.vocabulary.verdicts import ONE_SEED, VERDICTS, meaning

MOST_OF_AN_ENTRY = 2000  # characters of a table
MOST_NAMED = 6
"""Groups of cells that a sentence names before it counts the others."""


class Table(NamedTuple):
    """A table: rows of entries by column name, and notes below it."""

    rows: Sequence[Mapping[str, str]] = ()
    notes: str = ""
    title: str = ""


class Section(NamedTuple):
    """A part of a report: the question that it answers, sentences, and tables."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; a ``|`` inside an entry is escaped, and a line break becomes visible."""
    escaped = [
        [printable(entry, MOST_OF_AN_ENTRY).replace("|", "\\|") for entry in row] for row in rows
    ]
    lines = ["| " + " | ".join(row) + " |" for row in [heads, *escaped]]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])


def filled(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Rows with the columns of all of them; what a row lacks is empty. Empty columns are left
    out."""
    heads = dict.fromkeys(head for row in rows for head in row if any(r.get(head) for r in rows))
    return [{head: row.get(head, "") for head in heads} for row in rows]


def table_of(rows: Sequence[Mapping[str, str]]) -> str:
    """A table of rows (entries by column name). A trailing space distinguishes equal names."""
    return table([head.strip() for head in rows[0]], [list(row.values()) for row in rows])


def row_list(table: pd.DataFrame) -> list[Any]:
    return list(table.itertuples(index=False))


def distinct(values: Iterable[Any]) -> str:
    """Distinct values in order of appearance, separated by commas."""
    return ", ".join(dict.fromkeys(map(str, values)))


def joined(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last


def first_of(parts: Sequence[str], separator: str = "; ") -> str:
    """The first :data:`MOST_NAMED` parts; the others are counted."""
    more = len(parts) - MOST_NAMED
    return separator.join([*parts[:MOST_NAMED], *([f"and {more} more"] if more > 0 else [])])


def cell_list(cells: pd.DataFrame) -> str:
    """``rsLoRA r = 64, 256``: cells by rule and rank, and by optimizer if there are several."""
    rules = rule_names(curve_labels(cells))
    if cells["optimizer"].nunique() > 1:
        names = map(label, map(str, cells["optimizer"]))
        rules = [f"{name} {rule}" for name, rule in zip(names, rules, strict=True)]
    parts = [
        f"{rule} r = {number_list(sorted(set(ranks)))}"
        for rule, ranks in cells["rank"].groupby(pd.Series(rules, cells.index), sort=False)
    ]
    return first_of(parts)


def broken_list(cells: pd.DataFrame) -> str:
    """``rsLoRA r = 16, 64 at lr 0.1, step 3, 5``: cells by rate, with the steps of their ends."""
    return first_of(
        [
            f"{cell_list(own)} at lr {lr:g}, step {number_list(sorted(set(end_steps(own))))}"
            for lr, own in cells.groupby("lr")
        ]
    )


def number_list(numbers: Iterable[float]) -> str:
    """Numbers separated by commas; infinity is ``∞``."""
    return ", ".join("∞" if np.isinf(number) else setting_text(number) for number in numbers)


def interval(value: float, low: float, high: float) -> str:
    """``0.50 [0.49, 0.51]``; empty if ``value`` is NaN."""
    return "" if np.isnan(value) else interval_text(value, low, high)


def span(low: float, high: float) -> str:
    """``0.10 to 0.20``; one number if both are equal; empty if NaN."""
    if np.isnan(low):
        return ""
    return " to ".join(dict.fromkeys((number_text(low), number_text(high))))


def signed_interval(value: float, low: float, high: float) -> str:
    """``+0.0380 [+0.0310, +0.0450]``; without the interval if it is NaN."""
    text = f"{value:+.4f}"
    return text if np.isnan(low) else f"{text} [{low:+.4f}, {high:+.4f}]"


def rule_of_row(row: Any, setting: str = "") -> str:
    """``LoRA, γ = α/r``, and a setting. Only the formula if the user gives the exponent."""
    words = rule_formula(row.scaling, row.exponent_p, row.crossover)
    name = "" if row.scaling == POWER else RULES[row.scaling].label
    return ", ".join(filter(None, (name, words, setting)))


def quantity_text(site: str, stat: str) -> str:
    """The label of a quantity; site and statistic in words if it has none."""
    labels = {(q.site, q.stat): q.label for q in (*PRIMARY, *QUANTITIES)}
    return labels.get((site, stat)) or f"{SITES[site].label}, {STATS[stat].label}"


def legend(rows: pd.DataFrame) -> str:
    """What the verdicts of ``rows`` mean, and how they are tested."""
    found = set(rows["verdict"].astype(str))
    meanings = [f"*{word}*: {meaning(word, STABLE_RATIO)}" for word in VERDICTS if word in found]
    return f"{'; '.join(meanings)}.{'' if found <= {ONE_SEED} else f' {TESTED}'}"


def plain(text: str) -> str:
    """``text`` without the marks of Markdown, for a terminal."""
    return text.replace("*", "").replace("\\", "").replace("`", "")


def minus(text: str) -> str:
    """``text`` with true minus signs before its numbers."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text)


def json_value(value: Any) -> Any:
    """``value`` for JSON: missing is null, infinities are strings, a frame is a list of rows."""
    if isinstance(value, pd.DataFrame):
        value = value.to_dict("records")
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): json_value(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return list(map(json_value, value))
    if pd.isna(value):
        return None
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if isinstance(value, bool | int) else str(value)
