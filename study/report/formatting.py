"""How the report prints numbers, settings, rules and quantities."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from study.analysis.summary import interval_text
from study.vocabulary.quantities import QUANTITIES, SITES, STATS
from study.vocabulary.scaling import RULES, formula


def row_list(table: pd.DataFrame) -> list[Any]:
    """The rows of a table as named tuples."""
    return list(table.itertuples(index=False))


def distinct(values: Iterable[Any]) -> str:
    """Distinct values in order of appearance, separated by commas."""
    return ", ".join(dict.fromkeys(map(str, values)))


def number_list(numbers: Iterable[float]) -> str:
    """Numbers separated by commas; infinity is ``∞``."""
    return ", ".join("∞" if np.isinf(number) else f"{number:g}" for number in numbers)


def percent(share: float) -> str:
    """``54 %``."""
    return f"{100 * share:.0f} %"


def setting(value: Any) -> str:
    """The value of a configuration key; ``none`` if missing."""
    if pd.isna(value):
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def interval(value: float, low: float, high: float) -> str:
    """``0.50 [0.49, 0.51]``; empty if ``value`` is NaN."""
    return "" if np.isnan(value) else interval_text(value, low, high)


def number(value: float) -> str:
    """A number with two decimal places; empty if NaN."""
    return interval(value, np.nan, np.nan)


def span(low: float, high: float) -> str:
    """``0.10 to 0.20``; one number if both are equal; empty if NaN."""
    if np.isnan(low):
        return ""
    return number(low) if np.isclose(low, high) else f"{number(low)} to {number(high)}"


def signed_interval(value: float, low: float, high: float) -> str:
    """``+0.0380 [+0.0310, +0.0450]``; without the interval if it is NaN."""
    text = f"{value:+.4f}"
    return text if np.isnan(low) else f"{text} [{low:+.4f}, {high:+.4f}]"


def rule_of_row(row: Any) -> str:
    """``LoRA, γ = α/r``: the rule of a row of ``cells`` or of a derived table."""
    p = row.exponent_p if hasattr(row, "exponent_p") else row.exponent
    return rule_text(str(row.scaling), p)


def rule_text(scaling: str, p: float) -> str:
    """``LoRA, γ = α/r``; only the formula for a rule whose exponent the user gives."""
    rule = RULES[scaling]
    return formula(p) if rule.p is None else f"{rule.label}, {formula(rule.p)}"


def quantity_text(site: str, stat: str) -> str:
    """The label of a quantity; site and statistic in words if it has none."""
    known = next((q.label for q in QUANTITIES if (q.site, q.stat) == (site, stat)), None)
    return known or f"{SITES[site].label}, {STATS[stat].label}"


def verdict_text(verdict: str) -> str:
    """A verdict as the predicate of a sentence."""
    return {"stable": "is stable", "unclear": "is unclear"}.get(verdict, verdict)
