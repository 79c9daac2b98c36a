"""The rows to read first, and the terminal tables that show them."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from study.analysis.grouping import curve_columns, distinguishing, numbered
from study.analysis.intervals import interval_text, rounded
from study.analysis.rank_stabilized import rows_of_condition
from study.analysis.shared import one_per_measurement, shared_rules
from study.analysis.stable import (
    STABLE_COLUMNS,
    first_to_read,
    shared_measurements,
    side_by_side,
)
from study.analysis.verdicts import at_primary_steps
from study.analysis.wording import STRAIGHTNESS, factor_text, setting_text
from study.errors import printable
from study.vocabulary.quantities import BATCH_NAMES, DESCENT, MODEL_WIDE, PRIMARY, TRAIN
from study.vocabulary.scaling import RULES
from study.vocabulary.thresholds import CONFIDENCE, FEW_SEEDS, SEEDS_FOR_VERDICT, STABLE_RATIO
from study.vocabulary.verdicts import VERDICTS, Colour, meaning

SUMMARY_COLUMNS = (
    *("optimizer", "scaling", "exponent_p", "rule", "curve", "site", "stat", "quantity"),
    *("over", "batch", "step", "primary"),
    *("exponent", "ci_low", "ci_high", "estimate", "factor", "predicted", "verdict"),
    *("bent", "slope_low", "slope_high"),
    *("p_stable", "p_slope", "p_beyond", "p_bent"),
    *("interval", "seeds", "ranks", "rank_min", "rank_max", "margin", "dropped"),
    *("layer_p05", "layer_p95"),
)
OVER_MODEL = "whole model"
"""The value of ``over`` in rows measured over the whole model."""
STYLES: dict[Colour, str] = {"green": "green", "red": "red", "yellow": "yellow", "grey": "dim"}
"""The style of the terminal for each colour of the vocabulary."""
Parts = Sequence[tuple[str, pd.DataFrame]]
"""The rows of a table under each of its headings."""


def summary(exponents: pd.DataFrame) -> pd.DataFrame:
    """The primary quantities at their primary steps and at the first and last step measured.

    ``exponents`` is the table of :func:`~study.analysis.verdicts.with_verdicts`. Each quantity is
    read on one batch, that of the paper's condition: the held-out one where it was probed. Curves
    are in the order of the table, quantities in that of ``PRIMARY``. Columns beside those of
    ``exponents``:

    - ``rule``: the scaling rule, with its p if the user gave it;
    - ``curve``: the other values that separate the curves; empty if there are none;
    - ``over``: how layers were pooled;
    - ``estimate``: the exponent with ``ci_low`` and ``ci_high``, as text.
    """
    rows = _primary_rows(exponents)
    steps = rows.groupby(["of_curve", "place"])["step"]
    ends = (rows["step"] == steps.transform("min")) | (rows["step"] == steps.transform("max"))
    return _described(rows[rows["fixed"] | ends], exponents)


def headline(exponents: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`summary` at the primary steps of each quantity."""
    rows = _primary_rows(exponents)
    return _described(rows[rows["fixed"]], exponents)


def _primary_rows(exponents: pd.DataFrame) -> pd.DataFrame:
    """The primary quantities at every step, ordered by curve, quantity and step.

    ``fixed``: whether the step is a primary one. ``of_curve``, ``place``: numbers of the curve and
    of the quantity.
    """
    curve = pd.Series(numbered(exponents, curve_columns(exponents)), exponents.index)
    parts = []
    for place, quantity in enumerate(PRIMARY):
        rows = rows_of_condition(quantity, exponents)
        rows = rows.assign(of_curve=curve[rows.index], place=place)
        fixed = at_primary_steps(quantity, rows, rows["of_curve"].to_numpy())
        parts.append(rows.assign(fixed=fixed))
    return pd.concat(parts).sort_values(["of_curve", "place", "step"], kind="stable")


def _described(rows: pd.DataFrame, exponents: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``exponents`` with :data:`SUMMARY_COLUMNS`."""
    named = distinguishing(rows, curve_columns(exponents))
    by_row = list(rows.itertuples(index=False))
    rows = rows.assign(
        rule=list(map(_rule, rows["scaling"], rows["exponent_p"])),
        curve=[
            ", ".join(f"{name}={setting_text(getattr(row, name))}" for name in named)
            for row in by_row
        ],
        quantity=[f"{row.site} {row.stat}" for row in by_row],
        over=[
            OVER_MODEL if row.layer == MODEL_WIDE else f"mean over {row.layers} layers of the log"
            for row in by_row
        ],
        estimate=list(map(interval_text, rows["exponent"], rows["ci_low"], rows["ci_high"])),
    )
    return rows[list(SUMMARY_COLUMNS)].reset_index(drop=True)


def _rule(scaling: object, p: float, prefix: str = "power ") -> str:
    """``lora``, or ``power p=0.75`` for a rule whose exponent the user gives."""
    rule = RULES.get(str(scaling))
    return f"{prefix}p={p:g}" if rule is not None and rule.p is None else str(scaling)


def render_table(summary: pd.DataFrame) -> Table:
    """``summary`` as a rich table that fits 80 columns, with a caption on words and intervals.

    Prints nothing.
    """
    curves = [
        (", ".join(filter(None, map(str, key))), rows)
        for key, rows in summary.groupby(["optimizer", "rule", "curve"], sort=False, observed=True)
    ]
    table = Table(
        title="Scaling exponents with rank",
        caption=Text(_caption(summary, curves), style="table.caption"),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,  # the box leaves a blank between columns
        pad_edge=False,
    )
    predicted = bool(summary["predicted"].notna().any())
    table.add_column("quantity")
    for column in ("step", "exponent", "factor", *(["theory"] if predicted else [])):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for name, rows in curves:
        table.add_section()
        table.add_row(Text(printable(name), style="bold"))
        for row in rows.to_dict("records"):
            table.add_row(*_cells(row, predicted))
    return table


def _cells(row: Mapping[Any, Any], predicted: bool) -> list[str | Text]:
    """One row of the terminal table."""
    word = str(row["verdict"])
    bend = f"\n{rounded(row['slope_low'])} to {rounded(row['slope_high'])}" if row["bent"] else ""
    star = " *" if row["seeds"] >= SEEDS_FOR_VERDICT and not row["primary"] else ""
    verdict = Text(word + star, style=STYLES[VERDICTS[word].colour])
    if bend:
        verdict.append("\nbent", style="default")
    return [
        row["quantity"] + ("" if row["batch"] == TRAIN else f", {_batch_name(row['batch'])}"),
        str(row["step"]),
        row["estimate"] + bend,
        factor_text(row["factor"]),
        *([_or_blank(row["predicted"])] if predicted else []),
        verdict,
    ]


def _batch_name(batch: object) -> str:
    return BATCH_NAMES.get(str(batch), str(batch))


def _batch_lines(batches: "pd.Series[str]") -> list[str]:
    """Which batch each row is read on."""
    others = [str(batch) for batch in batches.unique() if batch != TRAIN]
    lines = [f"{_batch_name(batch)}: read on the {_batch_name(batch)} batch" for batch in others]
    rest = "all others: " if others else ""
    return [*lines, f"{rest}read on the {BATCH_NAMES[TRAIN]} batch"]


def _or_blank(value: float) -> str:
    return "" if pd.isna(value) else rounded(value)


def render_stable(stable: pd.DataFrame) -> Table:
    """The rows of :func:`~study.analysis.stable.first_to_read` as a rich table of 80 columns."""
    rows = first_to_read(stable)
    # Of the estimates from a grid of p, the one at the last step is enough.
    early = (rows["method"] == "grid") & (rows["step"] < rows["step"].max())
    rows = side_by_side(rows[~early])
    settings = distinguishing(
        rows, [name for name in curve_columns(rows) if name not in STABLE_COLUMNS]
    )
    rows = one_per_measurement(rows, settings)
    parts: dict[str, list[Any]] = {}
    for number, row in enumerate(rows.to_dict("records")):
        beside = [f"{name}={setting_text(row[name])}" for name in settings]
        parts.setdefault(", ".join([str(row["optimizer"]), *beside]), []).append(number)
    optimizers = [(name, rows.iloc[numbers]) for name, numbers in parts.items()]
    high = sorted(rows["high_rank_min"].dropna().unique())
    table = Table(
        title="p* in gamma = alpha / r^p: the p at which a quantity does not depend on rank",
        caption=Text(_stable_caption(rows, optimizers), style="table.caption"),
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
    shown = ("predicted", *(["high_p_star"] if high else []), "p_star_limit", "limit")
    for optimizer, part in optimizers:
        table.add_section()
        table.add_row(Text(printable(optimizer), style="bold"))
        for row in part.to_dict("records"):
            table.add_row(
                DESCENT.name if row["stat"] == DESCENT.stat else f"{row['site']} {row['stat']}",
                _measured_from(row),
                str(row["step"]),
                interval_text(row["p_star"], row["ci_low"], row["ci_high"]),
                *(_or_blank(row[name]) for name in shown),
            )
    return table


def _stable_caption(rows: pd.DataFrame, optimizers: Parts) -> str:
    lines = ["p* here: over the ranks measured; limit: corrected for finite rank"]
    lines.append(f"read on the {BATCH_NAMES[TRAIN]} batch")
    lines += _bracket_lines(optimizers)
    if (rows["few_seeds"] & (rows["interval"] == "seeds")).any():
        lines.append(f"fewer than {FEW_SEEDS} seeds: the intervals are too wide to rely on")
    return "\n".join([*lines, *shared_rules(rows), *shared_measurements(rows)])


def _measured_from(row: Mapping[Any, Any]) -> str:
    """The origin of one p*: the slope of a rule, that of each rule, or a grid of p."""
    if row["method"] == "grid":
        return "grid"
    if len(row["rules"]) > 1:
        return "each rule"
    return _rule(row["scaling"], row["exponent_p"], prefix="")


def _bracket_lines(parts: Parts) -> list[str]:
    """What the brackets show. Names the headings if they show different things."""
    shown: dict[str, list[str]] = {}
    for name, rows in parts:
        shown.setdefault(" or ".join(_brackets(rows)), []).append(name)
    shown.pop("", None)
    several = len(shown) > 1
    return [
        f"[ ] {text}{': ' + '; '.join(names) if several else ''}" for text, names in shown.items()
    ]


def _brackets(rows: pd.DataFrame) -> list[str]:
    """What the brackets beside the slopes of ``rows`` show: one text for each kind."""
    over = rows.loc[rows["interval"] == "seeds", "seeds"].unique()
    shown = [f"{100 * CONFIDENCE:g} % intervals over {seeds:g} seeds" for seeds in sorted(over)]
    return shown + ([STRAIGHTNESS] if (rows["interval"] == "ranks").any() else [])


def _caption(summary: pd.DataFrame, curves: Parts) -> str:
    if summary.empty:
        return "nothing to show: no primary quantity was measured at two ranks"
    lines = _bracket_lines(curves)
    if (summary["interval"] == "none").any():
        lines.append("a slope without brackets has one seed and two ranks")
    for word in VERDICTS:
        if (summary["verdict"] == word).any():
            lines.append(f"{word}: {meaning(word, STABLE_RATIO)}")
    spans = summary[["rank_min", "rank_max", "margin"]].drop_duplicates()
    lines += [
        f"factor: from rank {low:g} to {high:g}; {STABLE_RATIO:g} is an exponent of ±{margin:.3f}"
        for low, high, margin in spans.itertuples(index=False)
    ]
    if summary["bent"].any():
        lines.append("bent: not a straight line; below, its slopes at the lowest, highest ranks")
    lines += [
        f"{', '.join(rows['quantity'].unique())}: {over}"
        for over, rows in summary.groupby("over", sort=False)
        if over != OVER_MODEL
    ]
    lines += _batch_lines(summary["batch"])
    if (summary["dropped"] > 0).any():
        lines.append(f"cells of a curve that its fit leaves out: up to {summary['dropped'].max()}")
    tested = (summary["seeds"] >= SEEDS_FOR_VERDICT).any()
    if tested:
        lines.append("every word is corrected for the number of tests (Holm)")
    if tested and not summary["primary"].all():
        lines.append("* tested together with all quantities of its step; the others were fixed")
        lines.append("  before the runs and are tested together")
    return "\n".join(lines)
