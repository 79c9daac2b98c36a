"""The report's section on the task itself: perplexity and exact match on held-out examples."""

from typing import Any

import pandas as pd

from study.analysis import task_scores
from study.analysis.summary import interval_text
from study.report.text import number, plain, row_list, rule_name, table, word
from study.store import StudyTables
from study.vocabulary.optimizers import label

SAID = {"optimizer", "scaling", "exponent_p", "lr", "rank"}
"""What the table has columns for; other settings are named where they differ."""
NOT_SETTINGS = ("seeds", "rates", "perplexity", "exact_match", "base_", "study")


def task_section(tables: StudyTables) -> str:
    """Every rank and rule beside the base model, or nothing where no held-out loss was taken."""
    scores = task_scores(tables.cells, tables.metrics)
    if scores.empty:
        return ""
    asked = scores["exact_match"].notna().any()
    settings = [
        name
        for name in map(str, scores)
        if name not in SAID and not name.startswith(NOT_SETTINGS)
        if scores.groupby("optimizer", observed=True)[name].nunique(dropna=False).max() > 1
    ]
    heads = [
        "optimizer",
        "rule",
        "rank",
        "learning rate",
        "perplexity: base model",
        "after training",
    ]
    heads += ["exact match: base model", "after training"] if asked else []
    body = [
        [
            label(row.optimizer),
            ", ".join(
                [rule_name(row), *(f"{name}={word(getattr(row, name))}" for name in settings)]
            ),
            plain([row.rank]),
            f"{row.lr:g}",
            number(row.base_perplexity),
            interval_text(row.perplexity, row.perplexity_low, row.perplexity_high),
            *(_exact(row) if asked else []),
            str(row.seeds),
        ]
        for row in row_list(scores)
    ]
    text = (
        "## Did the task improve?\n\n"
        + table([*heads, "seeds"], body)
        + "\n\nOn held-out examples, after the last step. Perplexity is exp of the mean loss per target token. "
    )
    if asked:
        text += (
            "Exact match is the share of greedy answers in which the first label is the right one (FinLoRA's rule; the "
            "labels are all held-out targets)."
        )
    else:
        text += (
            "Answers were not asked for: train with `train.answer_tokens=20` for their exact match."
        )
    if (scores["rates"] > 1).any():
        text += " Of several learning rates, each rank's best."
    return text


def _exact(row: Any) -> list[str]:
    if pd.isna(row.exact_match):
        return ["", ""]
    return [
        number(row.base_exact_match),
        interval_text(row.exact_match, row.exact_match_low, row.exact_match_high),
    ]
