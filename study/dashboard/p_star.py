"""The estimates of p* to show first, as the report and ``study analyze`` choose them."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from study.analysis import curve_columns, first_to_read, side_by_side
from study.analysis.grouping import distinguishing
from study.analysis.stable import (
    STABLE_COLUMNS,
    one_per_measurement,
    one_per_optimizer,
    shared_measurements,
    shared_rules,
)
from study.analysis.wording import interval_text, number_text, setting_text
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import QUANTITIES, TRAIN
from study.vocabulary.scaling import rule_label


def p_star(stable: pd.DataFrame) -> dict[str, Any]:
    """``rows``: an object per optimizer, quantity and step: numbers for a bar, texts. ``notes``.

    ``stable`` is the table of :func:`study.analysis.stable_exponents`.
    """
    rows = first_to_read(stable)
    if rows.empty:
        return {"rows": [], "notes": []}
    # Of the estimates from several rules, the one at the last step is enough.
    early = (rows["method"] == "grid") & (rows["step"] < rows["step"].max())
    rows = side_by_side(rows[~early])
    columns = [name for name in curve_columns(rows) if name not in STABLE_COLUMNS]
    settings = distinguishing(rows, columns)
    rows = one_per_optimizer(one_per_measurement(rows, settings), settings)
    return {
        "rows": [_row(row, settings) for row in rows.to_dict("records")],
        "notes": [*shared_rules(rows), *shared_measurements(rows)],
    }


def _row(row: Mapping[Any, Any], settings: list[str]) -> dict[str, Any]:
    labels = {(q.site, q.stat): q.label for q in QUANTITIES}
    grid = row["method"] == "grid"
    return {
        "optimizer": label(str(row["optimizer"])),
        "setting": ", ".join(f"{name}={setting_text(row[name])}" for name in settings),
        "label": labels[row["site"], row["stat"]],
        "site": row["site"],
        "stat": row["stat"],
        "step": int(row["step"]),
        "batch": row.get("batch", TRAIN),
        "source": "several rules"
        if grid
        else ", ".join(rule_label(*rule) for rule in row["rules"]),
        **{name: _number(row[name]) for name in ("p_star", "ci_low", "ci_high", "predicted")},
        "estimate": interval_text(row["p_star"], row["ci_low"], row["ci_high"]),
        "theory": number_text(row["predicted"]),
        "corrected": _interval(row["p_star_limit"], row["limit_low"], row["limit_high"]),
        "limit": number_text(row["limit"]),
        "seeds": int(row["seeds"]),
    }


def _interval(value: float, low: float, high: float) -> str:
    return "" if pd.isna(value) else interval_text(value, low, high)


def _number(value: float) -> float | None:
    return None if pd.isna(value) else float(value)
