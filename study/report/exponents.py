"""The report's sections on p* and on scaling exponents."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from study.analysis import curve_columns, first_to_read, side_by_side, summary
from study.analysis.grouping import distinguishing
from study.analysis.stable import (
    STABLE_COLUMNS,
    one_per_measurement,
    one_per_optimizer,
    shared_measurements,
    shared_rules,
)
from study.analysis.wording import (
    batch_words,
    bend_text,
    bracket_head,
    bracket_notes,
    factor_text,
)
from study.report.formatting import (
    at_lowest_rate,
    count_noun,
    curve_name,
    interval,
    joined,
    legend,
    number,
    quantity_text,
    row_estimate,
    row_list,
    setting,
    span,
    word_text,
)
from study.report.markdown import Block, Details, bullets, table
from study.store import StudyTables
from study.vocabulary.optimizers import label
from study.vocabulary.scaling import rule_label


def p_star_section(tables: StudyTables) -> list[Block]:
    """p* of every quantity, once for each optimizer, with theory; empty if none was estimated."""
    stable, note = at_lowest_rate(first_to_read(tables.stable))
    rows = side_by_side(stable)
    if rows.empty:
        return []
    settings = distinguishing(
        rows, [name for name in curve_columns(rows) if name not in STABLE_COLUMNS]
    )
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
