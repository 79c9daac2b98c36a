"""The exponents of the best learning rate as a terminal table."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from study.analysis.grouping import distinguishing
from study.analysis.intervals import interval_text, rounded
from study.analysis.summary import STYLES
from study.analysis.wording import bracket_notes, setting_text
from study.errors import printable
from study.vocabulary.agreements import AGREEMENTS, meaning
from study.vocabulary.optimizers import label
from study.vocabulary.scaling import rule_label
from study.vocabulary.thresholds import RATE_RATIO


def render_rates(transfer: pd.DataFrame) -> Table:
    """The table of :func:`~study.analysis.rates.rate_transfer` as a rich table of 80 columns."""
    table = Table(
        title="Scaling exponents of the best learning rate with rank",
        caption=Text(_caption(transfer), style="table.caption"),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,  # the box leaves a blank between columns
        pad_edge=False,
    )
    table.add_column("optimizer, rule")
    for column in ("exponent", "theory"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("agreement", no_wrap=True)
    for column in ("ranks", "seeds"):
        table.add_column(column, justify="right", no_wrap=True)
    named = distinguishing(transfer, _settings(transfer))
    for row in transfer.to_dict("records"):
        others = [f"{name}={setting_text(row[name])}" for name in named]
        rule = rule_label(str(row["scaling"]), row["exponent_p"])
        word = str(row["agreement"])
        table.add_row(
            Text(printable(", ".join([label(str(row["optimizer"])), rule, *others]))),
            exponent_text(row["exponent"], row["ci_low"], row["ci_high"]),
            interval_span(row["predicted_low"], row["predicted_high"]),
            Text(word, style=STYLES[AGREEMENTS[word].colour] if word else ""),
            _ranks(row),
            str(row["seeds"]),
        )
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


def legend(transfer: pd.DataFrame) -> list[str]:
    """What the words of ``transfer`` mean, in sentences."""
    words = [word for word in AGREEMENTS if (transfer["agreement"] == word).any()]
    return [f"{word}: {meaning(word, RATE_RATIO)}." for word in words]


def _settings(transfer: pd.DataFrame) -> list[str]:
    """The columns that separate the rules: those before the fit."""
    before = list(transfer.columns[: list(transfer.columns).index("exponent")])
    return [str(name) for name in before if name != "setting"]


def _ranks(row: Mapping[Any, Any]) -> str:
    return f"{row['rank_min']:g}-{row['rank_max']:g}" if row["ranks"] else "none"


def _caption(transfer: pd.DataFrame) -> str:
    fitted = transfer[transfer["exponent"].notna()]
    notes = [*legend(transfer), *bracket_notes(fitted)]
    if (transfer["edges"] > 0).any():
        notes.append("Ranks with a best rate at an edge of the grid are left out.")
    return "\n".join(notes)
