"""The sections of the report: one function for each, from the tables of a study to Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from study.analysis import (
    curve_columns,
    first_to_read,
    rank_effects,
    rate_transfer,
    rule_differences,
    side_by_side,
    summary,
    task_scores,
    truncated_losses,
    truncation_effects,
)
from study.analysis.grouping import distinguishing
from study.analysis.losses import KEPT
from study.analysis.stable import (
    one_per_measurement,
    one_per_optimizer,
    shared_measurements,
    shared_rules,
)
from study.analysis.summary import ANSWERS, FAILS, LOST, answer, condition_rows
from study.analysis.terminal import exponent_text, interval_span
from study.analysis.terminal import legend as rate_legend
from study.analysis.wording import batch_words, bend_text, bracket_head, bracket_notes, factor_text
from study.report.text import (
    Block,
    Details,
    at_lowest_rate,
    bullets,
    count_noun,
    curve_name,
    interval,
    joined,
    legend,
    number,
    number_list,
    percent,
    quantity_text,
    row_estimate,
    row_list,
    rule_of_row,
    setting,
    signed_interval,
    span,
    table,
    word_text,
)
from study.store import StudyTables
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import BATCH_NAMES
from study.vocabulary.scaling import rule_label

TITLE = "## Are the adapters rank-stabilized?"

NamedCurve = tuple[str, list[Any]]
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
    body = [line for name, entries in curves for line in _condition_lines(name, entries)]
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


def _curves(rows: pd.DataFrame) -> list[NamedCurve]:
    """Every curve. Those that are stable at the first step and not at the last come first."""
    parts = [row_list(part) for _, part in rows.groupby("curve_number", sort=False)]
    parts.sort(key=lambda entries: answer_of(entries) != LOST)
    return [(curve_name(entries[0]), entries) for entries in parts]


def answer_of(entries: Sequence[Any]) -> str:
    """One of :data:`~study.analysis.summary.ANSWERS`, from the rows of one curve."""
    return answer(
        [row.verdict for row in entries if row.is_first],
        [row.verdict for row in entries if row.is_last],
    )


def _overall(curves: Sequence[NamedCurve]) -> str:
    """Which curves are stable to the end, and which are not."""
    sentences = []
    for found in ANSWERS:
        names = [name for name, entries in curves if answer_of(entries) == found]
        label = f"**{found.capitalize()}**" if found in (LOST, FAILS) else found.capitalize()
        if names:
            sentences.append(f"{label}: {'; '.join(names)}.")
    return " ".join(sentences)


def _condition_lines(name: str, entries: Sequence[Any]) -> list[list[str]]:
    """One line of the table per quantity of a curve."""
    lines = []
    for place in dict.fromkeys(row.place for row in entries):
        rows = [row for row in entries if row.place == place]
        first, last = rows[0], rows[-1]
        label = quantity_text(first.site, first.stat)
        at_last = _condition_entry(last) if last.step != first.step else ""
        lines.append([name, label, BATCH_NAMES[str(first.batch)], _condition_entry(first), at_last])
    return lines


def _condition_entry(row: Any) -> str:
    """``step 12: falls, -0.08 [-0.10, -0.06], ×0.72, theory 0.00``."""
    theory = number(row.predicted)
    parts = [word_text(row.verdict), row_estimate(row), factor_text(row.factor), bend_text(row)]
    parts += [f"theory {theory}" if theory else ""]
    return f"step {row.step}: " + ", ".join(filter(None, parts))


def p_star_section(tables: StudyTables) -> list[Block]:
    """p* of every quantity, once for each optimizer, with theory; empty if none was estimated."""
    stable, note = at_lowest_rate(first_to_read(tables.stable))
    rows = side_by_side(stable)
    if rows.empty:
        return []
    settings = distinguishing(rows, curve_columns(rows))
    last = rows["step"] == rows.groupby("method")["step"].transform("max")
    rows = one_per_measurement(rows[(rows["method"] == "linear") | last], settings)
    others, rows = rows, one_per_optimizer(rows, settings)
    high = sorted(rows["high_rank_min"].dropna().unique())
    heads = ["optimizer", "quantity", "step", "estimated from"]
    heads += ["p\\*, measured ranks", "theory, same ranks"]
    if high:
        lowest = " or ".join(f"{rank:g}" for rank in high)
        heads += [f"p\\*, ranks from {lowest}", "theory, same ranks"]
    heads += ["p\\*, corrected for finite rank", "theory, r → ∞", "small steps", "seeds"]
    notes = [*shared_rules(rows), *shared_measurements(rows), *bracket_notes(rows)]
    body = [
        _p_star_cells(row, settings, bool(high), _apart(row, others, settings))
        for row in rows.to_dict("records")
    ]
    return [
        "## p\\*\n\np\\* is the p in γ = α / r^p at which a quantity does not depend on the rank. "
        "It depends on the optimizer, the quantity and the step.\n\n"
        + bullets(_p_star_sentences(rows)),
        Details(
            f"Table: p\\* of {count_noun(len(body), 'quantity and step', 'quantities and steps')}, "
            "with intervals and theory",
            f"{table(heads, body)}\n\nAt steps 0 and 1, and up to step 3 if steps are small, the "
            "exponent is linear in p with a known factor, so one rule is enough to estimate p\\*: "
            "the one with small steps, and then the one with the narrowest interval. Elsewhere, "
            "p\\* is where the exponents of several rules cross zero (*several rules*). "
            f"{' '.join(notes)} Quantities per layer are pooled by the mean of the log. *Small "
            "steps*: whether the loss changed as the linear theory predicts. If it did not, only "
            f"quantities that the update does not affect have a prediction.{note}",
        ),
    ]


def _p_star_sentences(rows: pd.DataFrame) -> list[str]:
    """``**AdamW**: 1.00 for the descent of an update, 0.50 for ...``, each at its first step."""
    first = rows[rows["step"] == rows.groupby(["site", "stat"])["step"].transform("min")]
    lines = []
    for optimizer, part in first.groupby("optimizer", sort=False, observed=True):
        parts = [
            f"{number(row.p_star)} for {quantity_text(row.site, row.stat)} (step {row.step})"
            for row in row_list(part.drop_duplicates(["site", "stat"]))
        ]
        lines.append(f"**{label(str(optimizer))}**: {joined(parts)}.")
    return lines


def _apart(row: Mapping[Any, Any], others: pd.DataFrame, settings: list[str]) -> list[str]:
    """``but 0.60 from LoRA``: the p* of other rules whose intervals do not meet that of ``row``."""
    here = pd.Series(True, others.index)
    for name in ("optimizer", "site", "stat", "step", *settings):
        here &= others[name].eq(row[name]) | (others[name].isna() & pd.isna(row[name]))
    here &= (others["ci_low"] > row["ci_high"]) | (others["ci_high"] < row["ci_low"])
    return [
        f"but {number(other.p_star)} from {joined([rule_label(*rule) for rule in other.rules])}"
        for other in row_list(others[here & (others["method"] != "grid")])
    ]


def _p_star_cells(
    row: Mapping[Any, Any], settings: list[str], high: bool, apart: list[str]
) -> list[str]:
    grid = row["method"] == "grid"
    rules = ["several rules"] if grid else [rule_label(*rule) for rule in row["rules"]]
    cells = [
        label(row["optimizer"]),
        quantity_text(row["site"], row["stat"]),
        str(row["step"]),
        ", ".join([*rules, *(f"{name}={setting(row[name])}" for name in settings), *apart]),
        interval(row["p_star"], row["ci_low"], row["ci_high"]),
        number(row["predicted"]),
    ]
    if high:
        cells += [
            interval(row["high_p_star"], row["high_ci_low"], row["high_ci_high"]),
            number(row["high_predicted"]),
        ]
    return [
        *cells,
        interval(row["p_star_limit"], row["limit_low"], row["limit_high"]),
        number(row["limit"]),
        {1.0: "yes", 0.0: "no"}.get(row["lazy"], "unknown"),
        str(row["seeds"]),
    ]


def exponent_section(tables: StudyTables) -> list[Block]:
    """The scaling exponents of the summary, with factors, theory and verdicts."""
    if tables.exponents.empty:
        return []
    exponents, note = at_lowest_rate(tables.exponents)
    rows = summary(exponents)
    brackets = bracket_head(rows)
    on = batch_words(exponents["batch"].unique())
    several = any(on.values())
    heads = ["optimizer, rule", "quantity", *(["batch"] if several else []), "step"]
    heads += [f"exponent [{brackets}]" if brackets else "exponent"]
    heads += ["factor", "theory", "verdict", "5–95 % of layers"]
    body = [
        [
            curve_name(row),
            quantity_text(row.site, row.stat),
            *([on[row.batch]] if several else []),
            str(row.step),
            row_estimate(row),
            factor_text(row.factor),
            number(row.predicted),
            ", ".join(filter(None, (word_text(row.verdict), bend_text(row)))),
            span(row.layer_p05, row.layer_p95),
        ]
        for row in row_list(rows)
    ]
    return [
        "## Scaling exponents with rank",
        Details(
            f"Table: {count_noun(len(body), 'exponent')} with factor, theory and verdict",
            f"{table(heads, body)}\n\n{legend(rows)} {' '.join(bracket_notes(rows))} *Factor*: "
            "from the lowest to the highest rank. Theory is the slope of the finite-rank curve "
            f"over the same ranks.{note}",
        ),
    ]


def rate_section(tables: StudyTables) -> list[Block]:
    """The exponent of the best rate, and the best rates; empty if no rates were swept."""
    transfer = rate_transfer(tables.rates)
    if transfer.empty:
        return []
    fitted = transfer[transfer["exponent"].notna()]
    heads = ["optimizer", "rule", "exponent of the best rate", "theory", "agreement", "ranks"]
    heads += ["at the edge", "ρ", "seeds"]
    body = [
        [
            label(row.optimizer),
            rule_of_row(row),
            exponent_text(row.exponent, row.ci_low, row.ci_high),
            interval_span(row.predicted_low, row.predicted_high),
            row.agreement,
            str(row.ranks),
            str(row.edges),
            span(row.rho_min, row.rho_max) or "not recorded",
            str(row.seeds),
        ]
        for row in row_list(transfer)
    ]
    by = ["optimizer", "scaling", "exponent_p", "rank"]
    best = tables.rates.groupby(by, observed=True, sort=True)["best_lr"].median().reset_index()
    rates = [
        [label(row.optimizer), rule_of_row(row), f"{row.rank:g}", f"{row.best_lr:.2g}"]
        for row in row_list(best)
    ]
    return [
        "## Does the best learning rate transfer across ranks?",
        Details(
            "Table: the exponent of the best learning rate with rank, beside theory's",
            f"{table(heads, body)}\n\n"
            f"{' '.join([*rate_legend(transfer), *bracket_notes(fitted), NOTES])}",
        ),
        Details(
            "Table: the best learning rate of each rank",
            table(["optimizer", "rule", "rank", "best learning rate"], rates),
        ),
    ]


NOTES = (
    "The best rate is the minimum of a parabola in log lr around the best of the rates that every "
    "seed of the rank was run at. Intervals over seeds contain the error that the grid of rates "
    "makes. *At the edge* counts best rates that are the lowest or highest tried. Theory "
    "is the rate that changes the adapter output by the same amount at every rank measured. Under "
    "a sign-like optimizer one end is for ρ = |ΔA x| / |A₀ x| far below 1, and the other, half of "
    "it, for ρ far above 1."
)


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
        f"## Did the task improve?\n\n{_best_score(scores)}",
        Details(
            f"Table: {measured} of every rule and rank beside the base model's",
            f"{table([*heads, 'seeds'], body)}\n\n{text}",
        ),
    ]


def _best_score(scores: pd.DataFrame) -> str:
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


def truncation_section(tables: StudyTables) -> list[Block]:
    """Every trained rank and the ranks it can be cut to; empty if no adapter was cut."""
    effects = truncation_effects(truncated_losses(tables.cells, tables.truncations))
    if effects.empty:
        return []
    several_rates = bool(effects.groupby("optimizer", observed=True)["lr"].nunique().max() > 1)
    heads = ["optimizer", "rule", *(["lr"] if several_rates else []), "trained rank"]
    heads += ["held-out loss", "gain", f"rank that keeps {percent(KEPT)} of the gain"]
    heads += ["loss if cut to the lowest rank", "minus the loss of the run of that rank"]
    return [
        "## How much of its rank does a trained adapter need?",
        Details(
            "Table: the loss of adapters cut to a lower rank after training",
            table(heads, [_truncation_cells(row, several_rates) for row in row_list(effects)])
            + "\n\nAfter training, γBA of every layer is cut to its k largest singular directions. "
            "It is not trained further. *Gain* is the decrease of the loss from the base model. "
            "The last column is positive if the run trained at the lowest rank found a better "
            "adapter of that rank. Losses are in nats per token, means over seeds.",
        ),
    ]


def _truncation_cells(row: Any, several_rates: bool) -> list[str]:
    return [
        label(row.optimizer),
        rule_of_row(row),
        *([f"{row.lr:g}"] if several_rates else []),
        number_list([row.rank]),
        f"{row.loss:.4f}",
        "" if np.isnan(row.gained) else f"{row.gained:+.4f}",
        "" if np.isnan(row.needed) else number_list([row.needed]),
        "" if np.isnan(row.cut) else f"{row.cut:.4f} (rank {row.lowest:g})",
        "" if np.isnan(row.beyond) else signed_interval(row.beyond, row.ci_low, row.ci_high),
    ]
