"""The sections of a report below its answer: the question of each, sentences and tables."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from study.analysis.grouping import RULE, curve_columns, distinguishing, numbered
from study.analysis.losses import (
    KEPT,
    OF_A_RULE,
    rank_effects,
    rule_differences,
    shares_of_full,
    task_scores,
    truncated_losses,
    truncation_effects,
)
from study.analysis.plane import final_rho, motion_words
from study.analysis.stable import (
    EVERY_OPTIMIZER,
    first_to_read,
    one_per_optimizer,
    shared_at_step_0,
)
from study.analysis.text import (
    Section,
    Table,
    interval,
    joined,
    legend,
    number_list,
    quantity_text,
    row_list,
    rule_of_row,
    signed_interval,
    span,
)
from study.analysis.verdicts import summary
from study.analysis.wording import (
    STEEP_MARK,
    batch_words,
    bend_text,
    bracket_head,
    bracket_notes,
    curve_names,
    factor_text,
    number_text,
    rate_notes,
    setting_labels,
)
from study.store import StudyTables
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import PRIMARY, QUANTITIES
from study.vocabulary.scaling import FULL, rule_label
from study.vocabulary.verdicts import VERDICTS

SHORT = ("optimizer", "optimizer, rule", "quantity", "step", "factor", "theory", "verdict")
"""The columns that a terminal has room for, with those that begin with :data:`NUMBERS`."""
NUMBERS = ("exponent", "p\\*, measured", "theory, r")
NOUNS = {quantity.label: quantity.noun for quantity in (*PRIMARY, *QUANTITIES)}


def sections(tables: StudyTables) -> Iterator[Section]:
    for one in (exponent_section, p_star_section, loss_section, task_section, truncation_section):
        if section := one(tables):
            yield section


def short(table: Table) -> Table:
    """The columns of a table that a terminal has room for, with short names."""
    rows = []
    for row in table.rows:
        named = {name.split(" [")[0]: text.split(", bent")[0] for name, text in row.items()}
        shown = {name: named[name] for name in named if name in SHORT or name.startswith(NUMBERS)}
        shown["quantity"] = NOUNS.get(shown["quantity"], shown["quantity"])
        if "batch" in named:
            shown["optimizer, rule"] += f", {named['batch']}"
        rows.append(shown)
    return table._replace(rows=rows)


def at_lowest_rate(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows at each optimizer's lowest rate, as theory assumes small steps, and a note if there
    are several."""
    if table.empty or table.groupby("optimizer", observed=True)["lr"].nunique().max() < 2:
        return table, ""
    lowest = table.groupby("optimizer", observed=True)["lr"].transform("min")
    rates = ", ".join(f"{rate:g}" for rate in sorted(set(lowest)))
    note = f" All rows are at the lowest learning rate ({rates}), where the theory applies best."
    return table[table["lr"] == lowest], note


def p_star_section(tables: StudyTables) -> Section | None:
    """p* of every quantity, once for each optimizer, with theory."""
    stable, note = at_lowest_rate(first_to_read(tables.stable))
    rows = shared_at_step_0(stable)
    if rows.empty:
        return None
    settings = distinguishing(rows, curve_columns(rows))
    last = rows["step"] == rows.groupby("method")["step"].transform("max")
    others = rows[(rows["method"] == "linear") | last]
    rows = one_per_optimizer(others, settings)
    rows = rows.assign(named=setting_labels(rows, settings))
    notes = bracket_notes(rows)
    if (rows["optimizer"] == EVERY_OPTIMIZER).any():
        notes.insert(0, "Step 0 is before any update, so optimizers agree.")
    first = rows[
        rows["step"] == rows.groupby(["site", "stat"], observed=True)["step"].transform("min")
    ]
    sentences = []
    for optimizer, part in first.groupby("optimizer", sort=False, observed=True):
        parts = [
            f"{number_text(row.p_star)} for {quantity_text(row.site, row.stat)} (step {row.step})"
            for row in row_list(part.drop_duplicates(["site", "stat"]))
        ]
        sentences.append(f"**{label(str(optimizer))}**: {joined(parts)}.")
    body = [_p_star_row(row, settings, others) for row in rows.to_dict("records")]
    title = "At which p does each quantity keep its size?"
    return Section(
        title,
        [
            "p\\* is the p in γ = α / r^p at which a quantity does not depend on the rank.",
            *sentences,
        ],
        [Table(body, f"{P_STAR_NOTES} {' '.join(notes)}{note}", "p\\* of γ = α / r^p")],
    )


P_STAR_NOTES = (
    "While steps are small, the exponent is linear in p with a known factor, so one rule is enough "
    "to estimate p\\*: the one with the narrowest interval. Elsewhere, the exponents of several "
    "rules cross zero at p\\* (*several rules*). Layers are pooled by the mean of the "
    "log. *Small steps*: whether the loss changed as the linear theory predicts. If not, only "
    "quantities that the update does not affect have a prediction."
)


def _p_star_row(
    row: Mapping[Any, Any], settings: list[str], others: pd.DataFrame
) -> Mapping[str, str]:
    grid = row["method"] == "grid"
    rule = "several rules" if grid else rule_label(row["scaling"], row["exponent_p"])
    words = filter(None, (rule, row["named"], *_apart(row, others, settings)))
    return {
        "optimizer": label(row["optimizer"]),
        "quantity": quantity_text(row["site"], row["stat"]),
        "step": str(row["step"]),
        "estimated from": ", ".join(words),
        "p\\*, measured ranks": interval(row["p_star"], row["ci_low"], row["ci_high"]),
        "theory, same ranks": number_text(row["predicted"]),
        "p\\*, corrected for finite rank": interval(
            row["p_star_limit"], row["limit_low"], row["limit_high"]
        ),
        "theory, r → ∞": number_text(row["limit"]),
        "small steps": {1.0: "yes", 0.0: "no"}.get(row["lazy"], "unknown"),
        "seeds": str(row["seeds"]),
    }


def _apart(row: Mapping[Any, Any], others: pd.DataFrame, settings: list[str]) -> list[str]:
    """``but 0.60 from LoRA``: the p* of other rules whose intervals do not meet that of ``row``."""
    here = pd.Series(True, others.index)
    for name in ("optimizer", "site", "stat", "step", *settings):
        here &= others[name].eq(row[name]) | (others[name].isna() & pd.isna(row[name]))
    here &= (others["ci_low"] > row["ci_high"]) | (others["ci_high"] < row["ci_low"])
    return [
        f"but {number_text(other.p_star)} from {rule_label(other.scaling, other.exponent_p)}"
        for other in row_list(others[here & (others["method"] != "grid")])
    ]


def exponent_section(tables: StudyTables) -> Section | None:
    """The scaling exponents of the summary, with factors, theory and verdicts."""
    if tables.exponents.empty:
        return None
    exponents, note = at_lowest_rate(tables.exponents)
    if (rows := summary(exponents)).empty:
        return None
    brackets = bracket_head(rows)
    on = batch_words(exponents["batch"].unique())
    verdicts = {name: f"**{name}**" if word.beyond else name for name, word in VERDICTS.items()}
    rows = rows.assign(named=curve_names(rows, rows["curve"]))
    body = [
        {
            "optimizer, rule": row.named,
            "quantity": quantity_text(row.site, row.stat),
            **({"batch": on[row.batch]} if any(on.values()) else {}),
            "step": str(row.step),
            f"exponent [{brackets}]" if brackets else "exponent": row.estimate,
            "factor": factor_text(row.factor),
            "theory": number_text(row.predicted),
            "verdict": ", ".join(filter(None, (verdicts[row.verdict], bend_text(row)))),
            "5–95 % of layers": span(row.layer_p05, row.layer_p95),
        }
        for row in row_list(rows)
    ]
    notes = (
        f"{legend(rows)} {' '.join(bracket_notes(rows))} *Factor*: from the lowest to the highest "
        f"rank. *Theory*: the slope of the finite-rank curve over the same ranks.{note}"
    )
    asks = "How does each quantity change with the rank, at which step, and what did theory say?"
    condition = (
        "Adapters are rank-stabilized (Kalajdzievski 2023, Theorem 3.2) if their outputs, and the "
        "gradients that they pass to their inputs, do not depend on the rank at any step."
    )
    return Section(asks, [condition], [Table(body, notes, "Scaling exponents with rank")])


COMPARED = {
    "fixed": "one learning rate for all ranks",
    "best": "each rank's best learning rate",
    "matched": "rsLoRA's step size",
}
"""The comparisons of :mod:`study.analysis.losses` in words, in the order of the tables."""


def loss_section(tables: StudyTables) -> Section | None:
    """The effects of rank and rule; empty without final held-out losses."""
    losses = tables.losses
    effects = rank_effects(losses)
    if effects.empty:
        return None
    differences = rule_differences(losses)
    settings = losses.drop_duplicates("setting")
    shown = [n for n in distinguishing(settings, curve_columns(losses)) if n not in ("alpha", "lr")]
    named = dict(zip(settings["setting"], setting_labels(settings, shown), strict=True))
    # The rules are next to each other within one comparison.
    effects = effects.assign(place=effects["how"].map(list(COMPARED).index))
    effects = effects.sort_values(["optimizer", "place", "lr", *RULE[1:]], kind="stable")
    of_rank = [
        {
            "optimizer": label(row.optimizer),
            "rule": rule_of_row(row, named[row.setting]),
            "α": f"{row.alpha:g}",
            "compared at": _compared_at(row),
            "gain per doubling of the rank": signed_interval(row.gain, row.ci_low, row.ci_high),
            "ranks": f"{row.rank_min:.0f} to {row.rank_max:.0f}",
            "seeds": str(row.seeds),
        }
        for row in row_list(effects)
    ]
    of_rule = [
        {
            "optimizer": label(row.optimizer),
            "compared at": _compared_at(row),
            "rule": rule_of_row(row, named[row.setting]),
            "rank": f"{row.rank:.0f}",
            "loss minus rsLoRA's at equal rank": signed_interval(
                row.difference, row.ci_low, row.ci_high
            ),
        }
        for row in row_list(differences)
    ]
    found = [Table(of_rank, GAIN, "What doubling the rank does to the final loss")]
    said = []
    if of_rule:
        found.append(Table(of_rule, "", "The loss of each rule minus rsLoRA's at equal rank"))
        matched = bool((differences["how"] == "matched").any())
        said.append(MATCHED if matched else NOT_MATCHED)
    return Section("Does a higher rank help, or only a larger step?", said, found)


GAIN = "The gain is the decrease of the final held-out loss, in nats per token."
MATCHED = (
    "At matched step size, the difference between rules is due to the rule. The rest is due to the "
    "step size. Losses are interpolated between runs, linearly in the log of the step size."
)
NOT_MATCHED = (
    "No two runs have the same step size, so a difference between rules is one of rule and step "
    "size. To separate them, sweep `optimizer.lr`."
)


def _compared_at(row: Any) -> str:
    return COMPARED[row.how] + ("" if pd.isna(row.lr) else f" ({row.lr:g})")


OWN_COLUMNS = {"optimizer", *RULE, "lr", "study"}
"""Settings with a column in the section's table. Other settings are named if they differ."""


def task_section(tables: StudyTables) -> Section | None:
    """Every rank and rule next to the base model; empty without a held-out loss."""
    scores = task_scores(tables.cells, tables.metrics)
    if scores.empty:
        return None
    answered = bool(scores["exact_match"].notna().any())
    settings = [
        name
        for name in curve_columns(scores)
        if name not in OWN_COLUMNS
        if scores.groupby("optimizer", observed=True)[name].nunique(dropna=False).max() > 1
    ]
    rho = _rho_of(scores, tables.probes)
    scores = scores.assign(
        named=setting_labels(scores, settings), rho=rho, of_full=shares_of_full(scores)
    )
    body = []
    for row in row_list(scores):
        cells = {
            "optimizer": label(row.optimizer),
            "rule": rule_of_row(row, row.named),
            "rank": "full" if row.scaling == FULL else number_list([row.rank]),
            "learning rate": f"{row.lr:g}",
            "perplexity: base model": number_text(row.base_perplexity),
            "after training": interval(row.perplexity, row.perplexity_low, row.perplexity_high),
        }
        if answered:
            score = interval(row.exact_match, row.exact_match_low, row.exact_match_high)
            cells["exact match: base model"] = number_text(row.base_exact_match) if score else ""
            cells["after training "] = score
        if scores["rho"].notna().any():
            cells["ρ"] = number_text(row.rho)
        if scores["of_full"].notna().any():
            cells["of full fine-tuning's gain"] = number_text(row.of_full)
        body.append(cells | {"seeds": str(row.seeds)})
    best = row_list(scores)[int(scores["perplexity"].argmin())]
    rule = rule_label(best.scaling, best.exponent_p, best.crossover)
    said = (
        f"The lowest held-out perplexity is {number_text(best.perplexity)}, that of {rule} at rank "
        f"{number_list([best.rank])} under {label(best.optimizer)}."
    )
    if base := number_text(best.base_perplexity):
        said += f" The base model has {base}."
    if math.isfinite(best.rho):
        said += f" There {motion_words(best.rho)}"
    notes = (
        "On held-out examples, after the last step. Perplexity is exp of the mean loss per target "
        f"token. {EXACT if answered else NO_EXACT}"
    )
    if (scores["rates"] > 1).any():
        notes += " Of several learning rates, the table shows each rank's best."
    if scores["rho"].notna().any():
        notes += " ρ = |ΔA x| / |A₀ x| says how far A has moved at the last probed step."
    if scores["of_full"].notna().any():
        notes += (
            " The gain is the decrease of the loss, here over that of full fine-tuning at its best "
            "rate."
        )
    return Section("Did the task improve?", [said], [Table(body, notes)])


def _rho_of(scores: pd.DataFrame, probes: pd.DataFrame) -> list[float]:
    """By row of ``scores`` rho at the end, a geometric mean over its cells; NaN if not measured."""
    of_cells = final_rho(probes).map(math.log)
    return [math.exp(of_cells.reindex(list(ids)).mean()) for ids in scores["cell_ids"]]


EXACT = (
    "Exact match is the share of greedy answers whose first label is correct (FinLoRA's rule; the "
    "labels are all held-out targets)."
)
NO_EXACT = "Exact match was not measured: train with `train.answer_tokens=20`."


def truncation_section(tables: StudyTables) -> Section | None:
    """Every trained rank and the ranks it can be cut to; empty if no adapter was cut."""
    effects = truncation_effects(truncated_losses(tables.cells, tables.truncations))
    if effects.empty:
        return None
    several_rates = bool(effects.groupby("optimizer", observed=True)["lr"].nunique().max() > 1)
    body = [
        {
            "optimizer": label(row.optimizer),
            "rule": rule_of_row(row),
            **({"lr": f"{row.lr:g}"} if several_rates else {}),
            "trained rank": number_list([row.rank]),
            "held-out loss": f"{row.loss:.4f}",
            "gain": "" if np.isnan(row.gained) else f"{row.gained:+.4f}",
            f"rank that keeps {100 * KEPT:.0f} % of the gain": (
                "" if np.isnan(row.needed) else number_list([row.needed])
            ),
            "loss if cut to the lowest rank": (
                "" if np.isnan(row.cut) else f"{row.cut:.4f} (rank {row.lowest:.0f})"
            ),
            "minus the loss of the run of that rank": (
                "" if np.isnan(row.beyond) else signed_interval(row.beyond, row.ci_low, row.ci_high)
            ),
        }
        for row in row_list(effects)
    ]
    notes = (
        "After training, γBA of every layer is cut to its k largest singular directions. It is not "
        "trained further. *Gain* is the decrease of the loss from the base model. The last column "
        "is positive if the run trained at the lowest rank found a better adapter of that rank. "
        "Losses are in nats per token, means over seeds."
    )
    return Section("How much of its rank does a trained adapter need?", (), [Table(body, notes)])


def horizon_table(found: pd.DataFrame) -> Table:
    """:func:`~study.analysis.rates.exponents_against_rho`, for a terminal."""
    notes = ["Theory at rho: from equal descents of a step to equal outputs of the adapters."]
    notes += rate_notes(found[found["exponent"].notna()])
    if (found["edges"] > 0).any():
        notes.append("Ranks with a best rate at an edge are left out: study rates --refine.")
    horizon = found["horizon"]
    last = horizon == horizon.groupby(numbered(found, OF_A_RULE)).transform("max")
    apart = [name for name in distinguishing(found, curve_columns(found)) if name != "steps"]
    rows = found.assign(named=curve_names(found, setting_labels(found, apart)))
    rows = rows[last | found["exponent"].notna()]
    body = [
        {
            "optimizer, rule": row.named,
            "steps": f"{row.horizon:g}",
            "exponent": (interval(row.exponent, row.ci_low, row.ci_high) or "none")
            + (STEEP_MARK if row.steep else ""),
            "theory at rho": span(row.at_rho_low, row.at_rho_high) or "none",
            "rho": "none" if pd.isna(row.rho) else f"{row.rho:.2g}",
            "ranks": str(row.ranks),
            "seeds": str(row.seeds),
        }
        for row in row_list(rows.sort_values([*OF_A_RULE, "horizon"]))
    ]
    title = "Exponent of the best learning rate with rank, by horizon"
    return Table(body, " ".join(notes), title)
