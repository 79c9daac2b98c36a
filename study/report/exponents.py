"""The report's sections on verdicts, p* and scaling exponents."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from study.analysis import curve_columns, first_to_read, side_by_side, summary
from study.analysis.grouping import distinguishing
from study.analysis.stable import STABLE_COLUMNS
from study.report.formatting import (
    interval,
    number,
    quantity_text,
    row_list,
    rule_of_row,
    setting,
    span,
    verdict_text,
)
from study.report.markdown import bullets, table
from study.store import StudyTables
from study.vocabulary.optimizers import label
from study.vocabulary.scaling import rule_label
from study.vocabulary.thresholds import STABLE_RATIO


def verdict_section(tables: StudyTables) -> str:
    """The verdicts of the primary quantities, one bullet per curve."""
    if tables.exponents.empty:
        return "## Verdicts\n\nNone: no quantity was measured at two ranks."
    exponents, note = _at_lowest_rate(tables.exponents)
    rows = summary(exponents)
    rows = rows[rows["primary"].astype(bool)]
    lines = []
    for (optimizer, _, curve), part in rows.groupby(
        ["optimizer", "rule", "curve"], sort=False, observed=True
    ):
        entries = row_list(part)
        names = (label(str(optimizer)), rule_of_row(entries[0]), str(curve))
        verdicts = "; ".join(map(_verdict, entries))
        lines.append(f"**{', '.join(filter(None, names))}**: {verdicts}.")
    margins = rows[["rank_min", "rank_max", "margin"]].drop_duplicates()
    tests = "; ".join(
        f"±{margin:.3f} from rank {low:g} to {high:g}"
        for low, high, margin in margins.itertuples(index=False)
    )
    return (
        "## Verdicts\n\n"
        + bullets(lines)
        + "\n\nNumbers are scaling exponents with rank and their 95 % intervals. *Stable* means "
        "that an equivalence test shows a change of less than a factor of "
        f"{STABLE_RATIO:g} (an exponent within {tests}).{note}"
    )


def _verdict(row: Any) -> str:
    theory = "" if np.isnan(row.predicted) else f", theory {number(row.predicted)}"
    quantity = quantity_text(row.site, row.stat)
    return f"{quantity} at step {row.step} {verdict_text(row.verdict)} ({row.estimate}{theory})"


def p_star_section(tables: StudyTables) -> str:
    """p* of every quantity and rule, with theory; empty if none was estimated."""
    stable, note = _at_lowest_rate(first_to_read(tables.stable))
    rows = side_by_side(stable)
    if rows.empty:
        return ""
    settings = distinguishing(
        rows, [name for name in curve_columns(rows) if name not in STABLE_COLUMNS]
    )
    last = rows["step"] == rows.groupby("method")["step"].transform("max")
    rows = rows[(rows["method"] == "linear") | last]
    high = sorted(rows["high_rank_min"].dropna().unique())
    heads = ["optimizer", "quantity", "step", "estimated from"]
    heads += ["p\\*, measured ranks", "theory, same ranks"]
    if high:
        lowest = " or ".join(f"{rank:g}" for rank in high)
        heads += [f"p\\*, ranks from {lowest}", "theory, same ranks"]
    heads += ["p\\*, corrected for finite rank", "theory, r → ∞", "small steps", "seeds"]
    body = [_p_star_cells(row, settings, bool(high)) for row in rows.to_dict("records")]
    return (
        "## p\\*: the p in γ = α / r^p at which a quantity does not depend on rank\n\n"
        + table(heads, body)
        + "\n\nAt steps 0 and 1 the exponent is linear in p with a known factor, so each rule "
        "gives an estimate of p\\*. At later steps, p\\* is where the exponents of several rules "
        "cross zero (*several rules*). Quantities per layer are pooled by the mean of the log. "
        "*Small steps*: whether the loss changed as the linear theory predicts. If it did not, "
        f"only quantities that the update does not affect have a prediction.{note}"
    )


def _p_star_cells(row: Mapping[Any, Any], settings: list[str], high: bool) -> list[str]:
    grid = row["method"] == "grid"
    rule = "several rules" if grid else rule_label(row["scaling"], row["exponent_p"])
    cells = [
        label(row["optimizer"]),
        quantity_text(row["site"], row["stat"]),
        str(row["step"]),
        ", ".join([rule, *(f"{name}={setting(row[name])}" for name in settings)]),
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
    """The scaling exponents of the summary, with theory and verdicts."""
    if tables.exponents.empty:
        return ""
    exponents, note = _at_lowest_rate(tables.exponents)
    heads = ["optimizer", "rule", "quantity", "step", "exponent", "theory"]
    heads += ["5–95 % of layers", "verdict"]
    body = [
        [
            label(row.optimizer),
            ", ".join(filter(None, (rule_of_row(row), str(row.curve)))),
            quantity_text(row.site, row.stat),
            str(row.step),
            row.estimate,
            number(row.predicted),
            span(row.layer_p05, row.layer_p95),
            str(row.verdict) + ("" if row.primary else " \\*"),
        ]
        for row in row_list(summary(exponents))
    ]
    return (
        "## Scaling exponents with rank\n\n"
        + table(heads, body)
        + "\n\n\\* corrected for multiple tests (Holm). The quantities without a star were chosen "
        "before the runs. Theory is the slope of the finite-rank curve over the same ranks." + note
    )


def _at_lowest_rate(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows at each optimizer's lowest learning rate, and a note if there are several.

    The theory assumes small steps, so it is compared with the lowest rate.
    """
    if table.empty or table.groupby("optimizer", observed=True)["lr"].nunique().max() < 2:
        return table, ""
    lowest = table.groupby("optimizer", observed=True)["lr"].transform("min")
    rates = ", ".join(f"{rate:g}" for rate in sorted(set(lowest)))
    note = f" All rows are at the lowest learning rate ({rates}), where the theory applies best."
    return table[table["lr"] == lowest], note
