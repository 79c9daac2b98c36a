"""The report's first section: are the adapters rank-stabilized, from the first step to the last?"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from study.analysis.rank_stabilized import ANSWERS, FAILS, LOST, answer, condition_rows
from study.analysis.wording import bend_text, bracket_notes, factor_text
from study.report.formatting import (
    at_lowest_rate,
    count_noun,
    curve_name,
    legend,
    number,
    quantity_text,
    row_estimate,
    row_list,
    word_text,
)
from study.report.markdown import Block, Details, table
from study.store import StudyTables
from study.vocabulary.quantities import BATCH_NAMES

TITLE = "## Are the adapters rank-stabilized?"

Curve = tuple[str, list[Any]]
"""The name of a curve, and its rows."""


def condition_section(tables: StudyTables) -> list[Block]:
    """Outputs, input gradients and the gradient norm at the first and the last step, by rule."""
    if tables.exponents.empty:
        return [f"{TITLE}\n\nUnknown: no quantity was measured at two ranks."]
    exponents, note = at_lowest_rate(tables.exponents)
    rows = condition_rows(exponents)
    if rows.empty:
        return []
    curves = _curves(rows)
    heads = ["optimizer, rule", "quantity", "batch", "at its first step", "at its last step"]
    body = [line for name, entries in curves for line in _lines(name, entries)]
    return [
        f"{TITLE}\n\n{_overall(curves)}\n\n"
        "Rank-stabilized (Kalajdzievski 2023, Theorem 3.2) means that the outputs of the "
        "adapters, and the gradients that they pass to their inputs, do not depend on the rank "
        "at any step. The gradient norm is the paper's Figure 3.",
        Details(
            "Table: outputs, input gradients and gradient norm at the first and the last step "
            f"({count_noun(len(curves), 'rule')})",
            f"{table(heads, body)}\n\nAn entry is a word, the scaling exponent with rank, and the "
            f"factor (×) from the lowest to the highest rank. {legend(rows)} "
            f"{' '.join(bracket_notes(rows))}{note}",
        ),
    ]


def _curves(rows: pd.DataFrame) -> list[Curve]:
    """Every curve. Those that are stable at the first step and not at the last come first."""
    parts = [row_list(part) for _, part in rows.groupby("curve_number", sort=False)]
    parts.sort(key=lambda entries: answer_of(entries) != LOST)
    return [(curve_name(entries[0]), entries) for entries in parts]


def answer_of(entries: Sequence[Any]) -> str:
    """One of :data:`~study.analysis.rank_stabilized.ANSWERS`, from the rows of one curve."""
    return answer(
        [row.verdict for row in entries if row.is_first],
        [row.verdict for row in entries if row.is_last],
    )


def _overall(curves: Sequence[Curve]) -> str:
    """Which curves are stable to the end, and which are not."""
    sentences = []
    for found in ANSWERS:
        names = [name for name, entries in curves if answer_of(entries) == found]
        label = f"**{found.capitalize()}**" if found in (LOST, FAILS) else found.capitalize()
        if names:
            sentences.append(f"{label}: {'; '.join(names)}.")
    return " ".join(sentences)


def _lines(name: str, entries: Sequence[Any]) -> list[list[str]]:
    """One line of the table per quantity of a curve."""
    lines = []
    for place in dict.fromkeys(row.place for row in entries):
        rows = [row for row in entries if row.place == place]
        first, last = rows[0], rows[-1]
        label = quantity_text(first.site, first.stat)
        at_last = _entry(last) if last.step != first.step else ""
        lines.append([name, label, BATCH_NAMES[str(first.batch)], _entry(first), at_last])
    return lines


def _entry(row: Any) -> str:
    """``step 12: falls, -0.08 [-0.10, -0.06], ×0.72, theory 0.00``."""
    theory = number(row.predicted)
    parts = [word_text(row.verdict), row_estimate(row), factor_text(row.factor), bend_text(row)]
    parts += [f"theory {theory}" if theory else ""]
    return f"step {row.step}: " + ", ".join(filter(None, parts))
