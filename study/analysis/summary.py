"""The few rows that a reader wants first, and how they look in a terminal."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from study.analysis.grouping import curve_columns, distinguishing
from study.analysis.stable import first_to_read, side_by_side
from study.analysis.verdicts import rows_of
from study.vocabulary.quantities import MODEL_WIDE, PRIMARY
from study.vocabulary.thresholds import FEW_SEEDS, STABLE_RATIO

SUMMARY_COLUMNS = (
    *(
        "optimizer",
        "rule",
        "curve",
        "quantity",
        "over",
        "step",
        "primary",
        "exponent",
        "ci_low",
        "ci_high",
        "estimate",
    ),
    *(
        "predicted",
        "verdict",
        "interval",
        "seeds",
        "ranks",
        "rank_min",
        "rank_max",
        "margin",
        "dropped",
    ),
    *("layer_p05", "layer_p95"),
)
OVER_MODEL = "the model"
STYLES = {"stable": "green", "collapses": "red", "explodes": "red", "unclear": "yellow"}


def summary(exponents: pd.DataFrame) -> pd.DataFrame:
    """The primary quantities, where they are primary and at the first and last step they were measured at.

    ``exponents`` is what :func:`~study.analysis.verdicts.with_verdicts` returns. ``rule`` names the scaling with its p,
    ``curve`` what else tells the curves apart (empty where nothing does), ``over`` how layers were pooled, ``estimate``
    the exponent with its interval as it is printed. Curves come in the table's order, quantities in ``PRIMARY``'s.
    """
    rows = _first_rows(exponents)
    apart = distinguishing(rows, curve_columns(exponents))
    by_row = list(rows.itertuples(index=False))
    rows = rows.assign(
        rule=[
            f"power p={row.exponent_p:g}" if row.scaling == "power" else str(row.scaling)
            for row in by_row
        ],
        curve=[
            ", ".join(f"{name}={_short(getattr(row, name))}" for name in apart) for row in by_row
        ],
        quantity=[f"{row.site} {row.stat}" for row in by_row],
        over=[
            OVER_MODEL if row.layer == MODEL_WIDE else f"mean over {row.layers} layers of the log"
            for row in by_row
        ],
        estimate=list(map(interval_text, rows["exponent"], rows["ci_low"], rows["ci_high"])),
    )
    return rows[list(SUMMARY_COLUMNS)].reset_index(drop=True)


def _first_rows(exponents: pd.DataFrame) -> pd.DataFrame:
    """The summary's rows of ``exponents``, ordered by curve, quantity and step."""
    parts = []
    for place, quantity in enumerate(PRIMARY):
        parts.append(exponents[rows_of(quantity, exponents)].assign(place=place))
    rows = pd.concat(parts)
    rows["of_curve"] = rows.groupby(
        curve_columns(exponents), dropna=False, observed=True, sort=False
    ).ngroup()
    steps = rows.groupby(["of_curve", "place"])["step"]
    ends = (rows["step"] == steps.transform("min")) | (rows["step"] == steps.transform("max"))
    rows = rows[rows["primary"].astype(bool) | ends]
    return rows.sort_values(["of_curve", "place", "step"], kind="stable")


def interval_text(exponent: float, low: float, high: float) -> str:
    """``-0.50 [-0.52, -0.48]``, or ``-0.50`` alone where there is no interval."""
    if pd.isna(low) or pd.isna(high):
        return _two_places(exponent)
    return f"{_two_places(exponent)} [{_two_places(low)}, {_two_places(high)}]"


def _two_places(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # + 0.0: never "-0.00"


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def render_table(summary: pd.DataFrame) -> Table:
    """``summary`` as a rich table that fits 80 columns, its margins and intervals explained underneath.

    Nothing is printed: that is the caller's.
    """
    table = Table(
        title="Exponents in the rank, with 95 % intervals",
        caption=_caption(summary),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("quantity")
    table.add_column("step", justify="right")
    table.add_column("exponent", justify="right", no_wrap=True)
    predicted = bool(summary["predicted"].notna().any())
    if predicted:
        table.add_column("theory", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for (optimizer, rule, curve), rows in summary.groupby(
        ["optimizer", "rule", "curve"], sort=False, observed=True
    ):
        table.add_section()
        table.add_row(
            Text(", ".join(filter(None, (str(optimizer), str(rule), str(curve)))), style="bold")
        )
        for _, row in rows.iterrows():
            verdict = str(row["verdict"])
            theory = "" if pd.isna(row["predicted"]) else _two_places(row["predicted"])
            table.add_row(
                f"{row['quantity']}{'' if row['over'] == OVER_MODEL else ' (layers)'}",
                str(row["step"]),
                str(row["estimate"]),
                *([theory] if predicted else []),
                Text(verdict + ("" if row["primary"] else " *"), style=STYLES[verdict]),
            )
    return table


def render_stable(stable: pd.DataFrame) -> Table:
    """The rows of :func:`~study.analysis.stable.first_to_read` as a rich table that fits 80 columns."""
    rows = first_to_read(stable)
    late = rows[
        (rows["method"] == "grid") & (rows["step"] < rows["step"].max())
    ].index  # the last grid is enough
    rows = side_by_side(rows.drop(index=late))
    high = sorted(rows["high_rank_min"].dropna().unique())
    few = (
        ""
        if not rows["few_seeds"].any()
        else f"\nfewer than {FEW_SEEDS} seeds: the intervals say little"
    )
    table = Table(
        title="p* in gamma = alpha / r^p: where a quantity is flat in the rank",
        caption="here: over the ranks measured; limit: as the rank grows, the bend of finite ranks taken off"
        + few,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,  # the box leaves a blank between columns
        pad_edge=False,
    )
    for column in ("quantity", "from"):
        table.add_column(column, no_wrap=True)
    above = [f"r≥{' or '.join(f'{rank:g}' for rank in high)}"] if high else []
    for column in ("step", "p* here", "theory", *above, "limit", "theory"):
        table.add_column(column, justify="right", no_wrap=True)
    for optimizer, part in rows.groupby("optimizer", sort=False, observed=True):
        table.add_section()
        table.add_row(Text(str(optimizer), style="bold"))
        for _, row in part.iterrows():
            table.add_row(
                "descent" if row["stat"] == "descent" else f"{row['site']} {row['stat']}",
                measured_from(row),
                str(row["step"]),
                interval_text(row["p_star"], row["ci_low"], row["ci_high"]),
                *(
                    "" if pd.isna(row[name]) else _two_places(row[name])
                    for name in (
                        "predicted",
                        *(["high_p_star"] if high else []),
                        "p_star_limit",
                        "limit",
                    )
                ),
            )
    return table


def measured_from(row: "Mapping[Any, Any] | pd.Series[Any]") -> str:
    """What one p* was read off: a rule's slope, or a grid of p."""
    if row["method"] == "grid":
        return "grid"
    return f"p={row['exponent_p']:g}" if row["scaling"] == "power" else str(row["scaling"])


def _caption(summary: pd.DataFrame) -> str:
    if summary.empty:
        return "nothing to show: none of the primary quantities was measured at two ranks"
    lines = [
        f"stable: within ±{margin:.3f}, a factor of {STABLE_RATIO:g} from rank {low:g} to {high:g}"
        for low, high, margin in summary[["rank_min", "rank_max", "margin"]]
        .drop_duplicates()
        .itertuples(index=False)
    ]
    pooled = summary.loc[summary["over"] != OVER_MODEL, "over"].unique()
    if len(pooled):
        lines.append(f"(layers): {' or '.join(pooled)}")
    seeds = sorted(set(summary.loc[summary["interval"] == "seeds", "seeds"]))
    if seeds:
        lines.append(f"intervals over {' or '.join(map(str, seeds))} seeds")
    if (summary["interval"] == "ranks").any():
        lines.append("one seed: intervals are over ranks and say nothing about another seed")
    if (summary["interval"] == "none").any():
        lines.append("fewer than three ranks: no interval")
    if (summary["dropped"] > 0).any():
        lines.append(f"cells of a curve that are not in its fit: up to {summary['dropped'].max()}")
    if not summary["primary"].all():
        lines.append("* corrected for the number of quantities looked at (Holm)")
    return "\n".join(lines)
