"""The report's section on final held-out losses by rank and rule."""

from typing import Any

import numpy as np
import pandas as pd

from study.analysis import rank_effects, rule_differences
from study.report.formatting import row_list, rule_of_row, signed_interval
from study.report.markdown import Block, Details, table
from study.store import StudyTables
from study.vocabulary.optimizers import label

COMPARED = {
    "fixed": "one learning rate for all ranks",
    "best": "each rank's best learning rate",
    "matched": "rsLoRA's step size",
}
"""The comparisons of :mod:`study.analysis.losses` in words, in the order of the tables."""


def loss_section(tables: StudyTables) -> list[Block]:
    """The effect of rank, of the rule and their cost; empty without final held-out losses."""
    effects = rank_effects(tables.losses)
    if effects.empty:
        return []
    cost = _cost(tables.losses)
    return [
        "## Does a higher rank help, or only a larger step?",
        *_note_on_steps(tables.losses),
        Details("Table: what doubling the rank does to the final loss", _effect_of_rank(effects)),
        *_effect_of_rule(tables.losses),
        *([Details("Cost of the adapters by rank", cost)] if cost else []),
    ]


def _effect_of_rank(effects: pd.DataFrame) -> str:
    # The rules stand next to each other within one comparison.
    effects = effects.assign(place=effects["how"].map(list(COMPARED).index))
    effects = effects.sort_values(["optimizer", "place", "lr", "exponent_p"], kind="stable")
    heads = ["optimizer", "rule", "α", "compared at", "gain per doubling of the rank"]
    heads += ["ranks", "seeds"]
    body = [
        [
            label(row.optimizer),
            rule_of_row(row),
            f"{row.alpha:g}",
            _compared_at(row),
            signed_interval(row.gain, row.ci_low, row.ci_high),
            f"{row.rank_min:g} to {row.rank_max:g}",
            str(row.seeds),
        ]
        for row in row_list(effects)
    ]
    note = "The gain is the decrease of the final held-out loss, in nats per token."
    return f"{table(heads, body)}\n\n{note}"


def _effect_of_rule(losses: pd.DataFrame) -> list[Block]:
    differences = rule_differences(losses)
    if differences.empty:
        return []
    body = [
        [
            label(row.optimizer),
            _compared_at(row),
            rule_of_row(row),
            f"{row.rank:g}",
            signed_interval(row.difference, row.ci_low, row.ci_high),
        ]
        for row in row_list(differences)
    ]
    heads = ["optimizer", "compared at", "rule", "rank", "loss minus rsLoRA's at equal rank"]
    summary = "Table: the loss of each rule minus rsLoRA's at equal rank"
    return [Details(summary, table(heads, body))]


def _note_on_steps(losses: pd.DataFrame) -> list[Block]:
    """What differences between rules are due to; empty without two rules."""
    differences = rule_differences(losses)
    if differences.empty:
        return []
    if (differences["how"] == "matched").any():
        return [
            "At matched step size, the difference between rules is due to the rule. The rest is "
            "due to the step size. Losses are interpolated between runs, linearly in the log of "
            f"the step size{_widest_gap(losses)}."
        ]
    return [
        "No two runs have the same step size, so a difference between rules is one of rule and "
        "step size. To separate them, sweep `optimizer.lr`."
    ]


def _compared_at(row: Any) -> str:
    return COMPARED[row.how] + ("" if pd.isna(row.lr) else f" ({row.lr:g})")


def _widest_gap(losses: pd.DataFrame) -> str:
    """The largest factor between neighbouring learning rates of the matched losses."""
    rates = np.unique(losses.loc[losses["how"] == "matched", "lr"].to_numpy(float))
    if len(rates) < 2:
        return ""
    return f", across gaps of up to a factor of {np.max(rates[1:] / rates[:-1]):.2g}"


def _cost(losses: pd.DataFrame) -> str:
    costs = losses.dropna(subset=["flops"]).drop_duplicates("rank").sort_values("rank")
    if costs.empty or losses.groupby("rank")["flops"].nunique().max() != 1:
        return ""
    each = "; ".join(f"rank {row.rank:g}: {row.flops / 1e6:,.3g}" for row in row_list(costs))
    return f"Adapter cost in MFLOP per trained token, factored: {each}."
