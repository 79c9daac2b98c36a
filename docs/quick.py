"""The blocks of the README and of docs/start.md: the quick study, and the one of p*."""

import textwrap
from typing import Any

import pandas as pd
from rich.console import Console

from docs.blocks import QUICK, Block, minus, study_tables
from study.analysis import first_to_read, render_table, side_by_side, summary
from study.analysis.stable import shared_measurements
from study.analysis.summary import CONDITION, condition_rows
from study.analysis.verdicts import rows_of
from study.analysis.wording import bend_text, bracket_notes, factor_text
from study.figures.captions import settings
from study.report.answer import answer
from study.report.text import (
    bullets,
    interval,
    legend,
    number,
    quantity_text,
    row_estimate,
    row_list,
    table,
    word_text,
)
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import (
    BACKWARD_IN,
    DESCENT,
    FORWARD_OUT,
    GRADIENT_NORM,
    MODEL_WIDE,
    TRAIN,
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


def printed_answer() -> str:
    """The end of ``make study``, as a terminal of 100 columns shows it."""
    tables = study_tables()
    head = textwrap.fill(f"{QUICK}: {settings(tables.cells)}", TERMINAL, subsequent_indent="  ")
    indented = {"initial_indent": "- ", "subsequent_indent": "  "}
    said = [textwrap.fill(line, TERMINAL, **indented) for line in answer(tables)]
    return "\n".join(["```", head, *said, "```"])


def condition() -> str:
    """The paper's condition in the quick study: a row per quantity and step, a column per rule.

    An entry is like ``-0.50 [-0.52, -0.48] ×0.06 **collapses**``.
    """
    tables = study_tables()
    rows = condition_rows(tables.exponents)
    entries: dict[tuple[str, str], dict[str, str]] = {}
    for row in row_list(rows.sort_values(["place", "step"], kind="stable")):
        quantity = CONDITION[row.place]
        parts = [row_estimate(row), factor_text(row.factor), word_text(row.verdict), bend_text(row)]
        key = (quantity_text(quantity.site, quantity.stat), str(row.step))
        rule = rule_label(str(row.scaling), row.exponent_p)
        entries.setdefault(key, {})[rule] = " ".join(filter(None, parts))
    rules = list(dict.fromkeys(rule for entry in entries.values() for rule in entry))
    body = [[*key, *(entry[rule] for rule in rules)] for key, entry in entries.items()]
    ranks = f"{rows['rank_min'].min():g} to {rows['rank_max'].max():g}"
    return minus(
        f"{table(['', 'step', *rules], body)}\n\n{settings(tables.cells)}. An entry is the "
        f"exponent with rank, the factor (×) from the lowest rank to the highest ({ranks}), and "
        f"the verdict. {legend(rows)} {' '.join(bracket_notes(rows))}"
    )


def largest_layer() -> str:
    """``43 to 86 %``: the share of one layer in the adapters' output energy, over the cells."""
    probes = study_tables().probes
    rows = probes[(probes["site"] == FORWARD_OUT.site) & (probes["layer"] != MODEL_WIDE)]
    rows = rows[(rows["batch"] == TRAIN) & (rows["rms"] > 0)]
    # Energy: the mean square of a feature, times the features.
    energy = rows["rms"].astype(float) ** 2 * rows["d_out"]
    by_cell = energy.groupby([rows["cell_id"].astype(str), rows["step"]])
    share = 100 * by_cell.max() / by_cell.sum()
    return f"{share.min():.0f} to {share.max():.0f} %"


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


def size(study: str) -> str:
    """``24 cells, 6 minutes``."""
    cells = study_tables(study).cells
    return f"{len(cells)} cells, {cells['seconds'].astype(float).sum() / 60:.0f} minutes"


def p_star() -> str:
    """p* and slopes after one update, a column per optimizer, with the predictions."""
    tables = study_tables(P_STAR)
    stable, exponents = tables.stable, tables.exponents
    rates = tables.cells.groupby("optimizer", sort=False, observed=True)["lr"].unique()
    optimizers = [str(optimizer) for optimizer in rates.index]
    heads = [f"{label(o)}, lr {', '.join(f'{lr:g}' for lr in rates[o])}" for o in optimizers]

    def row(name: str, quantity: Quantity, table: pd.DataFrame, step: int, value: str) -> list[str]:
        here = table[rows_of(quantity, table) & (table["step"] == step)]
        found = {str(one.optimizer): _with_theory(one, value) for one in row_list(here[::-1])}
        return [name, *(found.get(optimizer, "") for optimizer in optimizers)]

    slopes = (FORWARD_OUT, WEIGHT_CHANGE, BACKWARD_IN)
    body = [
        row("p\\* of `descent`, first step", DESCENT, stable, 0, "p_star"),
        row("p\\* of the `adapter_grad` norm, step 0", GRADIENT_NORM, stable, 0, "p_star"),
        *(row(f"slope of `{one.site}`, step 1", one, exponents, 1, "exponent") for one in slopes),
    ]
    shared = shared_measurements(side_by_side(first_to_read(stable)))
    early = exponents[exponents["step"] <= 1]
    lazy = [o for o in optimizers if early.loc[early["optimizer"] == o, "lazy"].min() == 1]
    holds = ", ".join(map(label, lazy))
    note = f"Steps are small, so that the linear theory applies, under: {holds or 'none'}. "
    return minus(
        f"{table(['', *heads], body)}\n\n{settings(tables.cells)}, ranks "
        f"{', '.join(f'{rank:g}' for rank in sorted(set(tables.cells['rank'])))}. {note}"
        f"{' '.join([*shared, *bracket_notes(stable)])}"
    )


def _with_theory(row: Any, column: str) -> str:
    """``0.50 [0.49, 0.51]; theory 0.50``."""
    measured = interval(getattr(row, column), row.ci_low, row.ci_high)
    theory = number(row.predicted)
    return f"{measured}; theory {theory}" if theory else measured


BLOCKS: dict[str, Block] = {
    "printed-answer": printed_answer,
    "condition": condition,
    "largest-layer": largest_layer,
    "size": size,
    "verdict-lines": verdict_lines,
    "verdict-words": verdict_words,
    "p-star": p_star,
}
"""By the name in the documents."""
