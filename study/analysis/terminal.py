"""The output of ``study rates``, and tables of texts, as rich tables."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from study.analysis.grouping import RULE, curve_columns, distinguishing, groups
from study.analysis.losses import HIGHEST, INSIDE, LOWEST
from study.analysis.rates import OF_A_RULE
from study.analysis.wording import (
    bracket_notes,
    interval_text,
    rounded,
    setting_labels,
)
from study.errors import printable
from study.vocabulary.optimizers import label
from study.vocabulary.scaling import rule_label


def render_best(rates: pd.DataFrame) -> Table:
    """The last horizon of :func:`~study.analysis.rates.rates_by_horizon`: a row per rule,
    a column per rank, geometric means over seeds. ``<`` or ``>``: a seed's best is at an edge."""
    last = rates[rates["horizon"] == rates["horizon"].max()]
    ranks = sorted(set(last["rank"]))
    at_edge = (last["edge"] != INSIDE).any()
    table = _table(
        f"Best learning rates after {last['horizon'].max():g} steps",
        "< or >: at an edge of the rates tried for some seed." if at_edge else "",
        ["optimizer, rule", *(f"rank {rank:.0f}" for rank in ranks)],
        left=["optimizer, rule"],
    )
    for name, rule in _by_rule(last):
        texts = dict.fromkeys(ranks, "")
        for rank, runs in rule.groupby("rank"):
            marks = {"<": LOWEST, ">": HIGHEST}
            texts[rank] = "".join(m for m, edge in marks.items() if (runs["edge"] == edge).any())
            texts[rank] += f"{np.exp(np.log(runs['best_lr'].astype(float)).mean()):.2g}"
        table.add_row(Text(name), *texts.values())
    return table


def render_horizons(found: pd.DataFrame) -> Table:
    """:func:`~study.analysis.rates.exponents_against_rho` as a table of 80 columns."""
    notes = ["theory at rho: from equal descents of a step to equal outputs of the adapters."]
    notes += bracket_notes(found[found["exponent"].notna()])
    if (found["edges"] > 0).any():
        notes.append("Ranks with a best rate at an edge are left out: study rates --refine.")
    table = _table(
        "Exponent of the best learning rate with rank, by horizon",
        "\n".join(notes),
        ["optimizer, rule", "steps", "exponent", "theory at rho", "rho", "ranks", "seeds"],
        left=["optimizer, rule"],
    )
    for name, rule in _by_rule(found):
        last = rule["horizon"] == rule["horizon"].max()
        for row in rule[last | rule["exponent"].notna()].sort_values("horizon").to_dict("records"):
            table.add_row(
                Text(name),
                f"{row['horizon']:g}",
                exponent_text(row["exponent"], row["ci_low"], row["ci_high"]),
                interval_span(row["at_rho_low"], row["at_rho_high"]),
                "none" if pd.isna(row["rho"]) else f"{row['rho']:.2g}",
                str(row["ranks"]),
                str(row["seeds"]),
            )
            name = ""
    return table


def render_texts(title: str, rows: pd.DataFrame, caption: str = "", by: str = "") -> Table:
    """A frame of texts as a rich table; with ``by``, the rows of each of its values below it."""
    names = [str(name) for name in rows if name != by]
    table = _table(title, caption, names, left=names[:1])
    for part in groups(rows, [by]) if by else [rows]:
        if by:
            table.add_section()
            table.add_row(Text(printable(str(part[by].iloc[0])), style="bold"))
        for row in part[names].itertuples(index=False):
            table.add_row(*(Text(printable(str(text))) for text in row))
    return table


def _table(
    title: str, caption: str, columns: Sequence[str], left: Sequence[str], wrapped: bool = True
) -> Table:
    """An empty table with as many columns as fit: the box leaves a blank between them.

    Columns are justified to the right, except ``left``. ``wrapped``: whether long words of the
    first one go to the next line.
    """
    table = Table(
        title=title,
        caption=Text(caption, style="table.caption") if caption else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    for place, name in enumerate(columns):
        justify: Literal["left", "right"] = "left" if name in left else "right"
        table.add_column(name, justify=justify, no_wrap=place > 0 or not wrapped)
    return table


def _by_rule(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each rule with its name, by p and alpha."""
    rows = rows.assign(named=setting_labels(rows, distinguishing(rows, curve_columns(rows))))
    for rule in groups(rows.sort_values(list(OF_A_RULE)), OF_A_RULE):
        row = rule.iloc[0]
        words = rule_label(*row[list(RULE)]), str(row["named"])
        yield printable(", ".join(filter(None, (label(str(row["optimizer"])), *words)))), rule


def exponent_text(exponent: float, low: float, high: float) -> str:
    """``-0.67 [-0.80, -0.54]``; ``none`` without an exponent."""
    return "none" if pd.isna(exponent) else interval_text(exponent, low, high)


def interval_span(low: float, high: float) -> str:
    """``-0.87 to -0.43``; one number if both ends are equal; ``none`` without a prediction."""
    if pd.isna(low):
        return "none"
    ends = dict.fromkeys((rounded(low), rounded(high)))
    return " to ".join(ends)
