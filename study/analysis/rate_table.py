"""The best learning rates and their exponents as terminal tables."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from study.analysis.final_losses import HIGHEST, INSIDE, LOWEST
from study.analysis.grouping import CURVE_FIRST, distinguishing, numbered
from study.analysis.intervals import interval_text, rounded
from study.analysis.rates import OF_A_RULE
from study.analysis.summary import STYLES
from study.analysis.wording import bracket_notes, setting_text
from study.errors import printable
from study.vocabulary.agreements import AGREEMENTS, meaning
from study.vocabulary.optimizers import label
from study.vocabulary.scaling import rule_label
from study.vocabulary.thresholds import RATE_RATIO


def render_rates(transfer: pd.DataFrame) -> Table:
    """The table of :func:`~study.analysis.rates.rate_transfer` as a rich table of 80 columns."""
    table = _table("Scaling exponents of the best learning rate with rank")
    table.caption = Text(_caption(transfer), style="table.caption")
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


def render_best(rates: pd.DataFrame) -> Table:
    """The last horizon of :func:`~study.analysis.rate_horizons.rates_by_horizon`: a row per rule,
    a column per rank, geometric means over seeds. ``<`` or ``>``: a seed's best is at an edge."""
    last = rates[rates["horizon"] == rates["horizon"].max()]
    ranks = sorted(set(last["rank"]))
    table = _table(f"Best learning rates after {last['horizon'].max():g} steps")
    table.caption = "< or >: at an edge of the rates tried for some seed." if _edges(last) else None
    table.add_column("optimizer, rule")
    for rank in ranks:
        table.add_column(f"rank {rank:g}", justify="right", no_wrap=True)
    for name, rule in _by_rule(last):
        by_rank = dict(list(rule.groupby("rank")))
        cells = [_best_text(by_rank[rank]) if rank in by_rank else "" for rank in ranks]
        table.add_row(Text(name), *cells)
    return table


def render_horizons(found: pd.DataFrame) -> Table:
    """:func:`~study.analysis.rate_horizons.exponents_against_rho` as a table of 80 columns."""
    table = _table("Exponent of the best learning rate with rank, by horizon")
    fitted = found[found["exponent"].notna()]
    notes = ["theory at rho: between its values far below rho = 1 and far above it."]
    notes += bracket_notes(fitted)
    if (found["edges"] > 0).any():
        notes.append("Ranks with a best rate at an edge are left out: study rates --refine.")
    table.caption = Text("\n".join(notes), style="table.caption")
    table.add_column("optimizer, rule")
    for column in ("steps", "exponent", "theory at rho", "rho", "ranks", "seeds"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, rule in _by_rule(found):
        last = rule["horizon"] == rule["horizon"].max()
        for row in rule[last | rule["exponent"].notna()].sort_values("horizon").to_dict("records"):
            rho = "none" if pd.isna(row["rho"]) else f"{row['rho']:.2g}"
            at_rho = interval_span(row["at_rho_low"], row["at_rho_high"])
            exponent = exponent_text(row["exponent"], row["ci_low"], row["ci_high"])
            table.add_row(
                *(Text(name), f"{row['horizon']:g}", exponent, at_rho, rho),
                *(str(row["ranks"]), str(row["seeds"])),
            )
            name = ""
    return table


def _table(title: str) -> Table:
    """An empty table with as many columns as fit: the box leaves a blank between them."""
    return Table(
        title=title, caption_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False
    )


def _by_rule(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each rule with its name, by p and alpha."""
    named = distinguishing(rows, [name for name in CURVE_FIRST if name in rows and name != "lr"])
    rows = rows.sort_values(list(OF_A_RULE))
    for _, rule in rows.groupby(numbered(rows, OF_A_RULE)):
        first = rule.iloc[0]
        others = [f"{name}={setting_text(first[name])}" for name in named]
        words = rule_label(str(first["scaling"]), first["exponent_p"])
        yield printable(", ".join([label(str(first["optimizer"])), words, *others])), rule


def _edges(rates: pd.DataFrame) -> bool:
    return bool((rates["edge"] != INSIDE).any())


def _best_text(runs: pd.DataFrame) -> str:
    """``0.0031``, ``>0.0031`` if a seed's best rate is the highest tried."""
    mean = float(np.exp(np.log(runs["best_lr"].astype(float)).mean()))
    marks = {LOWEST: "<", HIGHEST: ">"}
    return (
        "".join(mark for edge, mark in marks.items() if (runs["edge"] == edge).any())
        + f"{mean:.2g}"
    )


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
