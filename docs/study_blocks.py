"""The blocks of the committed studies: the quick study, and the one of p*."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from docs.blocks import QUICK, Block, NoTables, minus, study_tables
from study.analysis import first_to_read, render_table, side_by_side, summary
from study.analysis.stable import shared_measurements
from study.analysis.summary import CONDITION, condition_rows
from study.analysis.wording import bend_text, bracket_notes, factor_text, number_text
from study.figures.captions import settings
from study.report.answer import answer as what_was_found
from study.report.text import (
    bullets,
    legend,
    quantity_text,
    row_estimate,
    row_list,
    table,
    word_text,
)
from study.store import StudyTables
from study.sweeps.progress import count_noun
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import (
    BACKWARD_IN,
    DESCENT,
    FORWARD_OUT,
    GRADIENT_NORM,
    MODEL_WIDE,
    WEIGHT_CHANGE,
    Quantity,
)
from study.vocabulary.scaling import rule_label
from study.vocabulary.thresholds import STABLE_RATIO
from study.vocabulary.verdicts import VERDICTS, meaning

TERMINAL = 100
"""Columns of the terminal that the documents show."""
P_STAR = "stable_exponent"
"""The folder of the study of p*, in ``results/reference``."""


def answer() -> str:
    """What the quick study found, as ``make study`` prints it."""
    return minus(bullets(what_was_found(study_tables())))


def printed_answer() -> str:
    """The end of ``make study``, as a terminal of 100 columns shows it."""
    tables = study_tables()
    head = textwrap.fill(f"{QUICK}: {settings(tables.cells)}", TERMINAL, subsequent_indent="  ")
    indented = {"initial_indent": "- ", "subsequent_indent": "  "}
    said = [textwrap.fill(line, TERMINAL, **indented) for line in what_was_found(tables)]
    return "\n".join(["```", head, *said, "```"])


def condition() -> str:
    """The paper's condition in the quick study: a row per quantity and step, a column per rule."""
    tables = study_tables()
    rows = condition_rows(tables.exponents)
    curves = [part for _, part in rows.groupby("curve_number", sort=False)]
    heads = [_rule(part.iloc[0]) for part in curves]
    places = rows[["place", "step"]].drop_duplicates().sort_values(["place", "step"])
    body = []
    for place, step in places.itertuples(index=False):
        quantity = CONDITION[place]
        here = [
            row_list(part[(part["place"] == place) & (part["step"] == step)]) for part in curves
        ]
        name = quantity_text(quantity.site, quantity.stat)
        body.append([name, str(step), *(_entry(found[0]) if found else "" for found in here)])
    ranks = f"{rows['rank_min'].min():g} to {rows['rank_max'].max():g}"
    return minus(
        f"{table(['', 'step', *heads], body)}\n\n{settings(tables.cells)}. An entry is the "
        f"exponent with rank, the factor (×) from the lowest rank to the highest ({ranks}), and "
        f"the verdict. {legend(rows)} {' '.join(bracket_notes(rows))}"
    )


def _entry(row: Any) -> str:
    """``-0.50 [-0.52, -0.48] ×0.06 **collapses**``."""
    parts = [row_estimate(row), factor_text(row.factor), word_text(row.verdict), bend_text(row)]
    return " ".join(filter(None, parts))


def _rule(row: Any) -> str:
    return rule_label(str(row.scaling), row.exponent_p)


def largest_layer() -> str:
    """``43 to 86 %``: the share of one layer in the adapters' output energy, over the cells."""
    probes = study_tables().probes
    rows = probes[(probes["site"] == FORWARD_OUT.site) & (probes["layer"] != MODEL_WIDE)]
    rows = rows[(rows["batch"] == "train") & (rows["rms"] > 0)]
    # Energy: the mean square of a feature, times the features.
    energy = rows["rms"].astype(float) ** 2 * rows["d_out"]
    by_cell = energy.groupby([rows["cell_id"].astype(str), rows["step"]])
    share = 100 * by_cell.max() / by_cell.sum()
    return f"{share.min():.0f} to {share.max():.0f} %"


def quick_times() -> str:
    """``24 cells, 6 minutes``: the size of the quick study."""
    return _size(study_tables())


def quick_cells() -> str:
    """``24 adapters on it (ranks 4 to 256, 2 rules, 3 seeds, 10 steps each)``."""
    cells = study_tables().cells
    ranks = f"{cells['rank'].min():g} to {cells['rank'].max():g}"
    seeds, rules = cells["seed"].nunique(), cells["scaling"].nunique()
    return (
        f"{len(cells)} adapters on it (ranks {ranks}, {count_noun(rules, 'rule')}, "
        f"{count_noun(seeds, 'seed')}, {cells['steps'].max():g} steps each)"
    )


def verdict_lines() -> str:
    """The first lines of ``study analyze`` on the quick study."""
    rows = summary(study_tables().exponents)
    first = rows[(rows["scaling"] == rows["scaling"].iloc[0]) & (rows["step"] == 0)]
    drawn = render_table(first)
    drawn.caption = None
    console = Console(width=80, color_system=None, force_terminal=False)
    with console.capture() as text:
        console.print(drawn)
    lines = [line.rstrip() for line in text.get().splitlines()]
    return "\n".join(["```", *filter(None, lines), "```"])


def verdict_words() -> str:
    """The words of the verdicts and what each means."""
    return bullets([f"*{word}*: {meaning(word, STABLE_RATIO)}" for word in VERDICTS])


def p_star_times() -> str:
    """The size of the study of p*."""
    return _size(study_tables(P_STAR))


def _size(tables: StudyTables) -> str:
    seconds = tables.cells["seconds"].astype(float).sum()
    return f"{len(tables.cells)} cells, {seconds / 60:.0f} minutes"


def p_star() -> str:
    """p* and slopes after one update, a column per optimizer, with the predictions."""
    tables = study_tables(P_STAR)
    if tables.stable.empty:
        raise NoTables(f"no p* in {P_STAR}")
    rates = tables.cells.groupby("optimizer", sort=False, observed=True)["lr"].unique()
    optimizers = [str(optimizer) for optimizer in rates.index]
    heads = [f"{label(o)}, lr {', '.join(f'{lr:g}' for lr in rates[o])}" for o in optimizers]
    stable = tables.stable
    body = [
        _p_star_row("p\\* of `descent`, first step", DESCENT, stable, optimizers),
        _p_star_row("p\\* of the `adapter_grad` norm, step 0", GRADIENT_NORM, stable, optimizers),
        *(
            _slope_row(quantity, tables.exponents, optimizers)
            for quantity in (FORWARD_OUT, WEIGHT_CHANGE, BACKWARD_IN)
        ),
    ]
    shared = shared_measurements(side_by_side(first_to_read(stable)))
    early = tables.exponents[tables.exponents["step"] <= 1]
    lazy = [o for o in optimizers if early.loc[early["optimizer"] == o, "lazy"].min() == 1]
    holds = ", ".join(map(label, lazy))
    note = f"Steps are small, so that the linear theory applies, under: {holds or 'none'}. "
    return minus(
        f"{table(['', *heads], body)}\n\n{settings(tables.cells)}, ranks "
        f"{', '.join(f'{rank:g}' for rank in sorted(set(tables.cells['rank'])))}. {note}"
        f"{' '.join([*shared, *bracket_notes(stable)])}"
    )


def _p_star_row(
    name: str, quantity: Quantity, stable: pd.DataFrame, optimizers: Sequence[str]
) -> list[str]:
    rows = _of(quantity, stable, 0)
    entries = []
    for optimizer in optimizers:
        found = row_list(rows[rows["optimizer"] == optimizer])
        entries.append(_with_theory(found[0], "p_star") if found else "")
    return [name, *entries]


def _slope_row(quantity: Quantity, exponents: pd.DataFrame, optimizers: Sequence[str]) -> list[str]:
    """Slopes after one update, under the study's rule."""
    rows = _of(quantity, exponents, 1)
    entries = []
    for optimizer in optimizers:
        found = row_list(rows[rows["optimizer"] == optimizer])
        entries.append(_with_theory(found[0], "exponent") if found else "")
    return [f"slope of `{quantity.site}`, step 1", *entries]


def _with_theory(row: Any, column: str) -> str:
    """``0.50 [0.49, 0.51]; theory 0.50``."""
    value = getattr(row, column)
    if np.isnan(row.ci_low):
        measured = number_text(value)
    else:
        low, high = number_text(row.ci_low), number_text(row.ci_high)
        measured = f"{number_text(value)} [{low}, {high}]"
    theory = number_text(row.predicted)
    return f"{measured}; theory {theory}" if theory else measured


def _of(quantity: Quantity, rows: pd.DataFrame, step: int) -> pd.DataFrame:
    """The rows of a quantity at one step, on the training batch, over all layers."""
    here = (rows["step"] == step) & (rows["batch"] == "train")
    for name in ("site", "stat", "kind", "layer"):
        here &= rows[name] == getattr(quantity, name)
    return rows[here]


BLOCKS: dict[str, Block] = {
    "answer": answer,
    "printed-answer": printed_answer,
    "condition": condition,
    "largest-layer": largest_layer,
    "quick-cells": quick_cells,
    "quick-times": quick_times,
    "verdict-lines": verdict_lines,
    "verdict-words": verdict_words,
    "p-star": p_star,
    "p-star-times": p_star_times,
}
"""By the name in the documents."""
