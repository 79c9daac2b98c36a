"""The page's small text: names for a reader, numbers, lists and tables in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from study.analysis.summary import interval_text
from study.report.caveats import Record
from study.vocabulary.quantities import QUANTITIES
from study.vocabulary.scaling import RULES, formula


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join(
        [
            *lines,
            *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows),
        ]
    )


def row_list(table: pd.DataFrame) -> list[Any]:
    return list(table.itertuples(index=False))


def bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def listed(values: Any) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values))


def plain(numbers: Sequence[float]) -> str:
    return ", ".join("∞" if np.isinf(number) else f"{number:g}" for number in numbers)


def word(value: Any) -> str:
    if pd.isna(value):
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def number(value: float) -> str:
    return "" if np.isnan(value) else interval_text(value, np.nan, np.nan)


def span(low: float, high: float) -> str:
    if np.isnan(low):
        return ""
    return number(low) if np.isclose(low, high) else f"{number(low)} to {number(high)}"


def signed_interval(value: float, low: float, high: float) -> str:
    text = f"{value:+.4f}"
    return text if np.isnan(low) else f"{text} [{low:+.4f}, {high:+.4f}]"


def rule_name(row: Any) -> str:
    """``LoRA, γ = α/r``; a rule whose exponent the user gave is its formula alone."""
    p = row.exponent_p if hasattr(row, "exponent_p") else row.exponent
    rule = RULES[str(row.scaling)]
    return formula(p) if rule.p is None else f"{rule.label}, {formula(rule.p)}"


def rule_in_words(name: str) -> str:
    """A rule of a summary table with its formula; a rule whose exponent the user gave is unchanged."""
    rule = RULES.get(name)
    return name if rule is None or rule.p is None else f"{rule.label}, {formula(rule.p)}"


def quantity_name(site: str) -> str:
    """The label of a quantity, by its site."""
    return next((q.label for q in QUANTITIES if q.site == site), site)


def verb(verdict: str) -> str:
    return {"stable": "is stable", "unclear": "is unclear"}.get(verdict, verdict)


def source(record: Record, what: str) -> str:
    return f"{record.get(what)} (sha256 {str(record.get('sources', {}).get(what, 'unknown'))[:12]})"


def commit(git: Mapping[str, Any] | None) -> str:
    if not git:
        return "not from a clone"
    return str(git["commit"])[:12] + (" with uncommitted changes" if git.get("dirty") else "")


def device(record: Record) -> str:
    return f"{record.get('device_name')} ({record.get('device')})"


def versions(records: Sequence[Record]) -> dict[str, str]:
    packages = dict.fromkeys(name for r in records for name in r.get("versions", {}))
    return {
        name: listed(r["versions"][name] for r in records if name in r.get("versions", {}))
        for name in packages
    }


def times(records: Sequence[Record], which: str) -> list[str]:
    return [str(r[which])[:16].replace("T", " ") for r in records if r.get(which)] or ["unknown"]
