"""The report's sections on p* and on scaling exponents."""

from collections.abc import Mapping
from typing import Any

from study.analysis import curve_columns, first_to_read, side_by_side, summary
from study.analysis.grouping import distinguishing
from study.analysis.shared import one_per_measurement, shared_rules
from study.analysis.stable import STABLE_COLUMNS, shared_measurements
from study.analysis.wording import bend_text, bracket_head, bracket_notes, factor_text
from study.report.formatting import (
    at_lowest_rate,
    curve_name,
    interval,
    legend,
    number,
    quantity_text,
    row_estimate,
    row_list,
    setting,
    span,
    word_text,
)
from study.report.markdown import table
from study.store import StudyTables
from study.vocabulary.optimizers import label
from study.vocabulary.scaling import rule_label


def p_star_section(tables: StudyTables) -> str:
    """p* of every quantity, optimizer and rule, with theory; empty if none was estimated."""
    stable, note = at_lowest_rate(first_to_read(tables.stable))
    rows = side_by_side(stable)
    if rows.empty:
        return ""
    settings = distinguishing(
        rows, [name for name in curve_columns(rows) if name not in STABLE_COLUMNS]
    )
    last = rows["step"] == rows.groupby("method")["step"].transform("max")
    rows = one_per_measurement(rows[(rows["method"] == "linear") | last], settings)
    high = sorted(rows["high_rank_min"].dropna().unique())
    heads = ["optimizer", "quantity", "step", "estimated from"]
    heads += ["p\\*, measured ranks", "theory, same ranks"]
    if high:
        lowest = " or ".join(f"{rank:g}" for rank in high)
        heads += [f"p\\*, ranks from {lowest}", "theory, same ranks"]
    heads += ["p\\*, corrected for finite rank", "theory, r → ∞", "small steps", "seeds"]
    notes = [*shared_rules(rows), *shared_measurements(rows), *bracket_notes(rows)]
    body = [_p_star_cells(row, settings, bool(high)) for row in rows.to_dict("records")]
    return (
        "## p\\*: the p in γ = α / r^p at which a quantity does not depend on rank\n\n"
        + table(heads, body)
        + "\n\nAt steps 0 and 1 the exponent is linear in p with a known factor, so each rule "
        "gives an estimate of p\\*. At later steps, p\\* is where the exponents of several rules "
        f"cross zero (*several rules*). {' '.join(notes)} "
        "Quantities per layer are pooled by the mean of the log. *Small steps*: whether the loss "
        "changed as the linear theory predicts. If it did not, only quantities that the update "
        f"does not affect have a prediction.{note}"
    )


def _p_star_cells(row: Mapping[Any, Any], settings: list[str], high: bool) -> list[str]:
    grid = row["method"] == "grid"
    rules = ["several rules"] if grid else [rule_label(*rule) for rule in row["rules"]]
    cells = [
        label(row["optimizer"]),
        quantity_text(row["site"], row["stat"]),
        str(row["step"]),
        ", ".join([*rules, *(f"{name}={setting(row[name])}" for name in settings)]),
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


def exponent_section(tables: StudyTables) -> str:
    """The scaling exponents of the summary, with factors, theory and verdicts."""
    if tables.exponents.empty:
        return ""
    exponents, note = at_lowest_rate(tables.exponents)
    rows = summary(exponents)
    brackets = bracket_head(rows)
    heads = ["optimizer, rule", "quantity", "step"]
    heads += [f"exponent [{brackets}]" if brackets else "exponent"]
    heads += ["factor", "theory", "verdict", "5–95 % of layers"]
    body = [
        [
            curve_name(row),
            quantity_text(row.site, row.stat),
            str(row.step),
            row_estimate(row),
            factor_text(row.factor),
            number(row.predicted),
            ", ".join(filter(None, (word_text(row.verdict), bend_text(row)))),
            span(row.layer_p05, row.layer_p95),
        ]
        for row in row_list(rows)
    ]
    return (
        "## Scaling exponents with rank\n\n"
        + table(heads, body)
        + f"\n\n{legend(rows)} {' '.join(bracket_notes(rows))} *Factor*: from the lowest to the "
        "highest rank. Theory is the slope of the finite-rank curve over the same ranks." + note
    )
