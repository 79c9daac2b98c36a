"""The values of the report's sections, for the template: a function each, from a study's tables."""

from collections.abc import Iterator, Mapping, Sequence
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
from study.analysis.grouping import RULE, distinguishing
from study.analysis.losses import KEPT
from study.analysis.stable import (
    one_per_measurement,
    one_per_optimizer,
    shared_measurements,
    shared_rules,
)
from study.analysis.summary import ANSWERS, FAILS, LOST, answer, condition_rows
from study.analysis.terminal import exponent_text, interval_span
from study.analysis.wording import (
    batch_words,
    bend_text,
    bracket_head,
    bracket_notes,
    factor_text,
    number_text,
    setting_labels,
)
from study.report.text import (
    interval,
    joined,
    legend,
    number_list,
    quantity_text,
    row_estimate,
    row_list,
    rule_of_row,
    signed_interval,
    span,
    word_text,
)
from study.store import StudyTables
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import BATCH_NAMES, PRIMARY, QUANTITIES
from study.vocabulary.scaling import rule_label

Section = dict[str, Any]
"""Values of a section; empty without data. A table is a list of rows: entries by column name."""


def curve_name(row: Any) -> str:
    """``AdamW, rsLoRA``: optimizer and rule of a row, and the settings that name its curve."""
    rule = rule_label(row.scaling, row.exponent_p, row.crossover)
    return ", ".join(filter(None, (label(str(row.optimizer)), rule, str(row.curve))))


def at_lowest_rate(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows at each optimizer's lowest learning rate, and a note if there are several.

    The theory assumes small steps, so it is compared with the lowest rate.
    """
    if table.empty or table.groupby("optimizer", observed=True)["lr"].nunique().max() < 2:
        return table, ""
    lowest = table.groupby("optimizer", observed=True)["lr"].transform("min")
    rates = ", ".join(f"{rate:g}" for rate in sorted(set(lowest)))
    note = f" All rows are at the lowest learning rate ({rates}), where the theory applies best."
    return table[table["lr"] == lowest], note


def answer_of(entries: Sequence[Any]) -> str:
    """One of :data:`~study.analysis.summary.ANSWERS`, from the rows of one curve."""
    return answer(
        [row.verdict for row in entries if row.is_first],
        [row.verdict for row in entries if row.is_last],
    )


def condition_section(tables: StudyTables) -> Section:
    """Outputs, input gradients and the gradient norm at the first and the last step, by rule.

    Curves that are stable at the first step and not at the last come first. Without exponents, the
    section has no rows.
    """
    if tables.exponents.empty:
        return {"rows": []}
    exponents, note = at_lowest_rate(tables.exponents)
    rows = condition_rows(exponents)
    if rows.empty:
        return {}
    curves = [row_list(part) for _, part in rows.groupby("curve_number", sort=False)]
    curves.sort(key=lambda entries: answer_of(entries) != LOST)
    overall = []
    for found in ANSWERS:
        names = [curve_name(entries[0]) for entries in curves if answer_of(entries) == found]
        word = f"**{found.capitalize()}**" if found in (LOST, FAILS) else found.capitalize()
        overall += [f"{word}: {'; '.join(names)}."] if names else []
    body = []
    for entries in curves:
        for place in dict.fromkeys(row.place for row in entries):
            first, *others = [row for row in entries if row.place == place]
            last = _condition_entry(others[-1]) if others else ""
            body.append(
                {
                    "optimizer, rule": curve_name(first),
                    "quantity": quantity_text(first.site, first.stat),
                    "batch": BATCH_NAMES[str(first.batch)],
                    "at its first step": _condition_entry(first),
                    "at its last step": last,
                }
            )
    notes = f"{legend(rows)} {' '.join(bracket_notes(rows))}{note}"
    return {"overall": " ".join(overall), "rows": body, "curves": len(curves), "legend": notes}


def _condition_entry(row: Any) -> str:
    """``step 12: falls, -0.08 [-0.10, -0.06], ×0.72, theory 0.00``."""
    theory = number_text(row.predicted)
    parts = [
        word_text(row.verdict),
        row_estimate(row),
        factor_text(row.factor),
        bend_text(row),
    ]
    parts += [f"theory {theory}" if theory else ""]
    return f"step {row.step}: " + ", ".join(filter(None, parts))


def p_star_section(tables: StudyTables) -> Section:
    """p* of every quantity, once for each optimizer, with theory."""
    stable, note = at_lowest_rate(first_to_read(tables.stable))
    rows = side_by_side(stable)
    if rows.empty:
        return {}
    settings = distinguishing(rows, curve_columns(rows))
    last = rows["step"] == rows.groupby("method")["step"].transform("max")
    others = one_per_measurement(rows[(rows["method"] == "linear") | last], settings)
    rows = one_per_optimizer(others, settings)
    rows = rows.assign(named=setting_labels(rows, settings))
    high = " or ".join(f"{rank:.0f}" for rank in sorted(rows["high_rank_min"].dropna().unique()))
    notes = [*shared_rules(rows), *shared_measurements(rows), *bracket_notes(rows)]
    first = rows[rows["step"] == rows.groupby(["site", "stat"])["step"].transform("min")]
    sentences = []
    for optimizer, part in first.groupby("optimizer", sort=False, observed=True):
        parts = [
            f"{number_text(row.p_star)} for {quantity_text(row.site, row.stat)} (step {row.step})"
            for row in row_list(part.drop_duplicates(["site", "stat"]))
        ]
        sentences.append(f"**{label(str(optimizer))}**: {joined(parts)}.")
    return {
        "sentences": sentences,
        "rows": [_p_star_row(row, settings, high, others) for row in rows.to_dict("records")],
        "notes": " ".join(notes),
        "note": note,
    }


def _p_star_row(
    row: Mapping[Any, Any], settings: list[str], high: str, others: pd.DataFrame
) -> Mapping[str, str]:
    grid = row["method"] == "grid"
    rules = ["several rules"] if grid else [rule_label(*rule) for rule in row["rules"]]
    words = filter(None, (*rules, row["named"], *_apart(row, others, settings)))
    at_high = {
        f"p\\*, ranks from {high}": interval(
            row["high_p_star"], row["high_ci_low"], row["high_ci_high"]
        ),
        "theory, same ranks ": number_text(row["high_predicted"]),
    }
    return {
        "optimizer": label(row["optimizer"]),
        "quantity": quantity_text(row["site"], row["stat"]),
        "step": str(row["step"]),
        "estimated from": ", ".join(words),
        "p\\*, measured ranks": interval(row["p_star"], row["ci_low"], row["ci_high"]),
        "theory, same ranks": number_text(row["predicted"]),
        **(at_high if high else {}),
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
    apart = row_list(others[here & (others["method"] != "grid")])
    rules = [joined([rule_label(*rule) for rule in other.rules]) for other in apart]
    return [
        f"but {number_text(other.p_star)} from {names}"
        for other, names in zip(apart, rules, strict=True)
    ]


def exponent_section(tables: StudyTables) -> Section:
    """The scaling exponents of the summary, with factors, theory and verdicts."""
    if tables.exponents.empty:
        return {}
    exponents, note = at_lowest_rate(tables.exponents)
    rows = summary(exponents)
    brackets = bracket_head(rows)
    on = batch_words(exponents["batch"].unique())
    body = [
        {
            "optimizer, rule": curve_name(row),
            "quantity": quantity_text(row.site, row.stat),
            **({"batch": on[row.batch]} if any(on.values()) else {}),
            "step": str(row.step),
            f"exponent [{brackets}]" if brackets else "exponent": row_estimate(row),
            "factor": factor_text(row.factor),
            "theory": number_text(row.predicted),
            "verdict": ", ".join(filter(None, (word_text(row.verdict), bend_text(row)))),
            "5–95 % of layers": span(row.layer_p05, row.layer_p95),
        }
        for row in row_list(rows)
    ]
    notes = f"{legend(rows)} {' '.join(bracket_notes(rows))}"
    return {"rows": body, "legend": notes, "note": note}


NOUNS = {quantity.label: quantity.noun for quantity in (*PRIMARY, *QUANTITIES)}
Printed = tuple[str, pd.DataFrame, str, str]
"""A table of the terminal: title, texts, caption, and the column that heads groups of rows."""


def printed(tables: StudyTables) -> Iterator[Printed]:
    """The sections on exponents and p* as tables of a terminal. The report has more columns."""
    if section := exponent_section(tables):
        rows = pd.DataFrame(section["rows"])
        names, notes = rows["optimizer, rule"], section["legend"].replace("*", "")
        texts = {
            "optimizer, rule": names + ", " + rows["batch"] if "batch" in rows else names,
            "quantity": rows["quantity"].replace(NOUNS),
            "step": rows["step"],
            "exponent": rows.filter(like="exponent").iloc[:, 0],
            "factor": rows["factor"],
            "theory": rows["theory"],
            "verdict": [word.replace("*", "").partition(":")[0] for word in rows["verdict"]],
        }
        shown = pd.DataFrame(texts)
        yield "Scaling exponents with rank", shown, notes + section["note"], "optimizer, rule"
    if section := p_star_section(tables):
        rows = pd.DataFrame(section["rows"])
        texts = {
            "optimizer": rows["optimizer"],
            "quantity": rows["quantity"].replace(NOUNS),
            "step": rows["step"],
            "p* here": rows["p\\*, measured ranks"],
            "theory": rows["theory, same ranks"],
            "limit": rows["p\\*, corrected for finite rank"],
            "theory ": rows["theory, r → ∞"],
        }
        title = "p* in gamma = alpha / r^p: the p at which a quantity does not depend on rank"
        notes = "p* here: over the ranks measured; limit: corrected for finite rank. "
        yield title, pd.DataFrame(texts), notes + section["notes"] + section["note"], "optimizer"


def rate_section(tables: StudyTables) -> Section:
    """The exponent of the best rate, and the best rates; empty if no rates were swept."""
    transfer = rate_transfer(tables.rates)
    if transfer.empty:
        return {}
    settings = distinguishing(transfer, curve_columns(transfer))

    def named(row: Any) -> dict[str, str]:
        return {"optimizer": label(row.optimizer), "rule": rule_of_row(row, row.named)}

    exponents = [
        {
            **named(row),
            "exponent of the best rate": exponent_text(row.exponent, row.ci_low, row.ci_high),
            "theory": interval_span(row.predicted_low, row.predicted_high),
            "ranks": str(row.ranks),
            "at the edge": str(row.edges),
            "ρ": span(row.rho_min, row.rho_max) or "not recorded",
            "seeds": str(row.seeds),
        }
        for row in row_list(transfer.assign(named=setting_labels(transfer, settings)))
    ]
    by = ["optimizer", *RULE, *settings, "rank"]
    logs = tables.rates.assign(log_lr=np.log(tables.rates["best_lr"].astype(float)))
    means = logs.groupby(by, observed=True, dropna=False)["log_lr"].mean().reset_index()
    best = [
        {**named(row), "rank": f"{row.rank:.0f}", "best learning rate": f"{np.exp(row.log_lr):.2g}"}
        for row in row_list(means.assign(named=setting_labels(means, settings)))
    ]
    notes = bracket_notes(transfer[transfer["exponent"].notna()])
    return {"exponents": exponents, "best": best, "legend": "".join(f"{note} " for note in notes)}


COMPARED = {
    "fixed": "one learning rate for all ranks",
    "best": "each rank's best learning rate",
    "matched": "rsLoRA's step size",
}
"""The comparisons of :mod:`study.analysis.losses` in words, in the order of the tables."""


def loss_section(tables: StudyTables) -> Section:
    """The effects of rank and rule; empty without final held-out losses."""
    losses = tables.losses
    effects = rank_effects(losses)
    if effects.empty:
        return {}
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
    rates = np.unique(losses.loc[losses["how"] == "matched", "lr"].to_numpy(float))
    gap = f"{np.max(rates[1:] / rates[:-1]):.2g}" if len(rates) > 1 else ""
    return {
        "effects": of_rank,
        "differences": of_rule,
        "matched": bool(of_rule) and bool((differences["how"] == "matched").any()),
        "gap": f", across gaps of up to a factor of {gap}" if gap else "",
    }


def _compared_at(row: Any) -> str:
    return COMPARED[row.how] + ("" if pd.isna(row.lr) else f" ({row.lr:g})")


OWN_COLUMNS = {"optimizer", *RULE, "lr", "rank"}
"""Settings with a column in the section's table. Other settings are named if they differ."""
NOT_SETTINGS = ("seeds", "rates", "perplexity", "exact_match", "base_", "study")


def task_section(tables: StudyTables) -> Section:
    """Every rank and rule next to the base model; empty without a held-out loss."""
    scores = task_scores(tables.cells, tables.metrics)
    if scores.empty:
        return {}
    answered = bool(scores["exact_match"].notna().any())
    settings = [
        name
        for name in map(str, scores)
        if name not in OWN_COLUMNS and not name.startswith(NOT_SETTINGS)
        if scores.groupby("optimizer", observed=True)[name].nunique(dropna=False).max() > 1
    ]
    body = []
    for row in row_list(scores.assign(named=setting_labels(scores, settings))):
        score = interval(row.exact_match, row.exact_match_low, row.exact_match_high)
        exact = {
            "exact match: base model": number_text(row.base_exact_match) if score else "",
            "after training ": score,
        }
        body.append(
            {
                "optimizer": label(row.optimizer),
                "rule": rule_of_row(row, row.named),
                "rank": number_list([row.rank]),
                "learning rate": f"{row.lr:g}",
                "perplexity: base model": number_text(row.base_perplexity),
                "after training": interval(row.perplexity, row.perplexity_low, row.perplexity_high),
                **(exact if answered else {}),
                "seeds": str(row.seeds),
            }
        )
    best = row_list(scores)[int(scores["perplexity"].argmin())]
    return {
        "perplexity": number_text(best.perplexity),
        "rule": rule_label(best.scaling, best.exponent_p, best.crossover),
        "rank": number_list([best.rank]),
        "optimizer": label(best.optimizer),
        "base": number_text(best.base_perplexity),
        "rows": body,
        "answered": answered,
        "several_rates": bool((scores["rates"] > 1).any()),
    }


def truncation_section(tables: StudyTables) -> list[dict[str, str]]:
    """Every trained rank and the ranks it can be cut to; empty if no adapter was cut."""
    effects = truncation_effects(truncated_losses(tables.cells, tables.truncations))
    if effects.empty:
        return []
    several_rates = bool(effects.groupby("optimizer", observed=True)["lr"].nunique().max() > 1)
    return [
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
