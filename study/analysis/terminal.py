"""The output of ``study rates``, and tables of texts, as rich tables."""

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from study.analysis.grouping import RULE, curve_columns, distinguishing, groups
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


def render_horizons(found: pd.DataFrame) -> Table:
    """:func:`~study.analysis.rates.exponents_against_rho` as a table of 80 columns."""
    notes = ["theory at rho: from equal descents of a step to equal outputs of the adapters."]
    notes += bracket_notes(found[found["exponent"].notna()])
    if (found["edges"] > 0).any():
        notes.append("Ranks with a best rate at an edge are left out: study rates --refine.")
    named = setting_labels(found, distinguishing(found, curve_columns(found)))
    found, rows = found.assign(named=named).sort_values(list(OF_A_RULE)), []
    for rule in groups(found, OF_A_RULE):
        first = rule.iloc[0]
        words = label(str(first["optimizer"])), rule_label(*first[list(RULE)]), str(first["named"])
        name = ", ".join(filter(None, words))
        last = rule["horizon"] == rule["horizon"].max()
        for row in rule[last | rule["exponent"].notna()].sort_values("horizon").to_dict("records"):
            rows.append(
                {
                    "optimizer, rule": name,
                    "steps": f"{row['horizon']:g}",
                    "exponent": exponent_text(row["exponent"], row["ci_low"], row["ci_high"]),
                    "theory at rho": interval_span(row["at_rho_low"], row["at_rho_high"]),
                    "rho": "none" if pd.isna(row["rho"]) else f"{row['rho']:.2g}",
                    "ranks": str(row["ranks"]),
                    "seeds": str(row["seeds"]),
                }
            )
            name = ""
    title = "Exponent of the best learning rate with rank, by horizon"
    return render_texts(title, pd.DataFrame(rows), "\n".join(notes))


def render_texts(title: str, rows: pd.DataFrame, caption: str = "", by: str = "") -> Table:
    """A frame of texts as a rich table with as many columns as fit; with ``by``, the rows of each
    of its values below it. Long words of the first column go to the next line."""
    table = Table(
        title=title,
        caption=Text(caption, style="table.caption") if caption else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,  # the box leaves a blank between columns
        pad_edge=False,
    )
    names = [str(name) for name in rows if name != by]
    for place, name in enumerate(names):
        if place:
            table.add_column(name, justify="right", no_wrap=True)
        else:
            table.add_column(name, min_width=12)
    for part in groups(rows, [by]) if by else [rows]:
        if by:
            table.add_section()
            table.add_row(Text(printable(str(part[by].iloc[0])), style="bold"))
        for row in part[names].itertuples(index=False):
            table.add_row(*(Text(printable(str(text))) for text in row))
    return table


def exponent_text(exponent: float, low: float, high: float) -> str:
    """``-0.67 [-0.80, -0.54]``; ``none`` without an exponent."""
    return "none" if pd.isna(exponent) else interval_text(exponent, low, high)


def interval_span(low: float, high: float) -> str:
    """``-0.87 to -0.43``; one number if both ends are equal; ``none`` without a prediction."""
    if pd.isna(low):
        return "none"
    ends = dict.fromkeys((rounded(low), rounded(high)))
    return " to ".join(ends)
