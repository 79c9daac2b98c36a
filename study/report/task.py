"""The report's section on the task: perplexity and exact match on held-out examples."""

from typing import Any

import pandas as pd

from study.analysis import task_scores
from study.report.formatting import (
    interval,
    number,
    number_list,
    row_list,
    rule_of_row,
    setting,
)
from study.report.markdown import Block, Details, table
from study.store import StudyTables
from study.vocabulary.optimizers import label
from study.vocabulary.scaling import rule_label

OWN_COLUMNS = {"optimizer", "scaling", "exponent_p", "lr", "rank"}
"""Settings with a column in the section's table. Other settings are named if they differ."""
NOT_SETTINGS = ("seeds", "rates", "perplexity", "exact_match", "base_", "study")


def task_section(tables: StudyTables) -> list[Block]:
    """Every rank and rule next to the base model; empty without a held-out loss."""
    scores = task_scores(tables.cells, tables.metrics)
    if scores.empty:
        return []
    answered = bool(scores["exact_match"].notna().any())
    settings = [
        name
        for name in map(str, scores)
        if name not in OWN_COLUMNS and not name.startswith(NOT_SETTINGS)
        if scores.groupby("optimizer", observed=True)[name].nunique(dropna=False).max() > 1
    ]
    heads = ["optimizer", "rule", "rank", "learning rate"]
    heads += ["perplexity: base model", "after training"]
    heads += ["exact match: base model", "after training"] if answered else []
    body = [
        [
            label(row.optimizer),
            ", ".join(
                [rule_of_row(row), *(f"{name}={setting(getattr(row, name))}" for name in settings)]
            ),
            number_list([row.rank]),
            f"{row.lr:g}",
            number(row.base_perplexity),
            interval(row.perplexity, row.perplexity_low, row.perplexity_high),
            *(_exact_match(row) if answered else []),
            str(row.seeds),
        ]
        for row in row_list(scores)
    ]
    text = (
        "On held-out examples, after the last step. Perplexity is exp of the mean loss per target "
        "token. "
    )
    if answered:
        text += (
            "Exact match is the share of greedy answers whose first label is correct (FinLoRA's "
            "rule; the labels are all held-out targets)."
        )
    else:
        text += "Exact match was not measured: train with `train.answer_tokens=20`."
    if (scores["rates"] > 1).any():
        text += " Of several learning rates, the table shows each rank's best."
    measured = "perplexity and exact match" if answered else "perplexity"
    return [
        f"## Did the task improve?\n\n{_best(scores)}",
        Details(
            f"Table: {measured} of every rule and rank beside the base model's",
            f"{table([*heads, 'seeds'], body)}\n\n{text}",
        ),
    ]


def _best(scores: pd.DataFrame) -> str:
    row = row_list(scores)[int(scores["perplexity"].argmin())]
    rule = rule_label(str(row.scaling), row.exponent_p)
    base = number(row.base_perplexity)
    return (
        f"The lowest held-out perplexity is {number(row.perplexity)}, that of {rule} at rank "
        f"{number_list([row.rank])} under {label(row.optimizer)}."
        f"{f' The base model has {base}.' if base else ''}"
    )


def _exact_match(row: Any) -> list[str]:
    if pd.isna(row.exact_match):
        return ["", ""]
    return [
        number(row.base_exact_match),
        interval(row.exact_match, row.exact_match_low, row.exact_match_high),
    ]
