"""The output of ``study analyze`` and ``study rates``: rich tables of exponents, p* and rates."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from study.analysis.grouping import RULE, curve_columns, distinguishing, groups
from study.analysis.losses import HIGHEST, INSIDE, LOWEST
from study.analysis.rates import OF_A_RULE
from study.analysis.stable import (
    first_to_read,
    one_per_measurement,
    shared_measurements,
    shared_rules,
    side_by_side,
)
from study.analysis.summary import OVER_MODEL
from study.analysis.wording import (
    bracket_notes,
    factor_text,
    interval_text,
    number_text,
    rounded,
    setting_labels,
)
from study.errors import printable
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import BATCH_NAMES, DESCENT, TRAIN
from study.vocabulary.scaling import rule_label, rule_words
from study.vocabulary.thresholds import FEW_SEEDS, SEEDS_FOR_VERDICT, STABLE_RATIO
from study.vocabulary.verdicts import VERDICTS, Colour, colour_of, meaning

STYLES: dict[Colour, str] = {"green": "green", "red": "red", "yellow": "yellow", "grey": "dim"}


def render_table(summary: pd.DataFrame) -> Table:
    """``summary`` as a rich table that fits 80 columns, with a caption on words and intervals."""
    by = ["optimizer", "rule", "curve", "batch"]
    predicted = bool(summary["predicted"].notna().any())
    theory = ["theory"] if predicted else []
    columns = ["quantity", "step", "exponent", "factor", *theory, "verdict"]
    table = _table(
        "Scaling exponents with rank", _caption(summary), columns, ["quantity", "verdict"]
    )
    for (*key, batch), rows in summary.groupby(by, sort=False, observed=True):
        name = ", ".join([*filter(None, map(str, key)), BATCH_NAMES.get(str(batch), str(batch))])
        table.add_section()
        table.add_row(Text(printable(name), style="bold"))
        for row in rows.to_dict("records"):
            word = str(row["verdict"])
            star = " *" if row["seeds"] >= SEEDS_FOR_VERDICT and not row["primary"] else ""
            verdict = Text(word + star, style=STYLES[colour_of(word, str(row["stat"]))])
            bend = ""
            if row["bent"]:
                bend = f"\n{rounded(row['slope_low'])} to {rounded(row['slope_high'])}"
                verdict.append("\nbent", style="default")
            table.add_row(
                row["quantity"],
                str(row["step"]),
                row["estimate"] + bend,
                factor_text(row["factor"]),
                *([number_text(row["predicted"])] if predicted else []),
                verdict,
            )
    return table


def _caption(summary: pd.DataFrame) -> str:
    if summary.empty:
        return "nothing to show: no primary quantity was measured at two ranks"
    lines = bracket_notes(summary)
    for word in VERDICTS:
        if (summary["verdict"] == word).any():
            lines.append(f"{word}: {meaning(word, STABLE_RATIO)}")
    spans = summary[["rank_min", "rank_max", "margin"]].drop_duplicates()
    lines += [
        f"factor: from rank {low:.0f} to {high:.0f}; {STABLE_RATIO} is an exponent of ±{margin:.3f}"
        for low, high, margin in spans.itertuples(index=False)
    ]
    if summary["bent"].any():
        lines.append("bent: not a straight line; below, its slopes at the lowest, highest ranks")
    lines += [
        f"{', '.join(rows['quantity'].unique())}: {over}"
        for over, rows in summary.groupby("over", sort=False)
        if over != OVER_MODEL
    ]
    names = ", ".join(BATCH_NAMES.get(batch, batch) for batch in summary["batch"].unique())
    lines.append(f"{names}: the batch of the rows below it")
    if (summary["dropped"] > 0).any():
        lines.append(f"cells of a curve that its fit leaves out: up to {summary['dropped'].max()}")
    tested = (summary["seeds"] >= SEEDS_FOR_VERDICT).any()
    if tested:
        lines.append("verdicts are stricter than intervals: many are tested (Holm)")
    if tested and not summary["primary"].all():
        lines.append("* tested together with all quantities of its step; the others were fixed")
        lines.append("  before the runs and are tested together")
    return "\n".join(lines)


def render_stable(stable: pd.DataFrame) -> Table:
    """The rows of :func:`~study.analysis.stable.first_to_read` as a rich table of 80 columns."""
    rows = first_to_read(stable)
    # Of the estimates from a grid of p, the one at the last step is enough.
    early = (rows["method"] == "grid") & (rows["step"] < rows["step"].max())
    rows = side_by_side(rows[~early])
    settings = distinguishing(rows, curve_columns(rows))
    rows = one_per_measurement(rows, settings)
    named = zip(rows["optimizer"], setting_labels(rows, settings), strict=True)
    heads = [", ".join(filter(None, map(str, words))) for words in named]
    high = sorted(rows["high_rank_min"].dropna().unique())
    above = [f"r≥{' or '.join(f'{rank:.0f}' for rank in high)}"] if high else []
    lines = ["p* here: over the ranks measured; limit: corrected for finite rank"]
    lines.append(f"read on the {BATCH_NAMES[TRAIN]} batch")
    lines += bracket_notes(rows)
    if (rows["few_seeds"] & (rows["interval"] == "seeds")).any():
        lines.append(f"fewer than {FEW_SEEDS} seeds: the intervals are too wide to rely on")
    table = _table(
        "p* in gamma = alpha / r^p: the p at which a quantity does not depend on rank",
        "\n".join([*lines, *shared_rules(rows), *shared_measurements(rows)]),
        ["quantity", "from", "step", "p* here", "theory", *above, "limit", "theory"],
        left=["quantity", "from"],
        wrapped=False,
    )
    shown = ("predicted", *(["high_p_star"] if high else []), "p_star_limit", "limit")
    for optimizer, part in rows.groupby(np.array(heads, object), sort=False):
        table.add_section()
        table.add_row(Text(printable(str(optimizer)), style="bold"))
        for row in part.to_dict("records"):
            rule = rule_words(row["scaling"], row["exponent_p"]).removeprefix("power ")
            origin = "each rule" if len(row["rules"]) > 1 else rule
            table.add_row(
                DESCENT.name if row["stat"] == DESCENT.stat else f"{row['site']} {row['stat']}",
                "grid" if row["method"] == "grid" else origin,
                str(row["step"]),
                interval_text(row["p_star"], row["ci_low"], row["ci_high"]),
                *(number_text(row[name]) for name in shown),
            )
    return table


def render_best(rates: pd.DataFrame) -> Table:
    """The last horizon of :func:`~study.analysis.rates.rates_by_horizon`: a row per rule,
    a column per rank, geometric means over seeds. ``<`` or ``>``: a seed's best is at an edge."""
    last = rates[rates["horizon"] == rates["horizon"].max()]
    ranks = sorted(set(last["rank"]))
    at_edge = (last["edge"] != INSIDE).any()
    table = _table(
        f"Best learning rates after {last['horizon'].max():g} steps",
        "< or >: at an edge of the rates tried for some seed." if at_edge else "",
        ["optimizer, rule", *(f"rank {rank:.0f}" for rank in ranks)],
        left=["optimizer, rule"],
    )
    for name, rule in _by_rule(last):
        texts = dict.fromkeys(ranks, "")
        for rank, runs in rule.groupby("rank"):
            marks = {"<": LOWEST, ">": HIGHEST}
            texts[rank] = "".join(m for m, edge in marks.items() if (runs["edge"] == edge).any())
            texts[rank] += f"{np.exp(np.log(runs['best_lr'].astype(float)).mean()):.2g}"
        table.add_row(Text(name), *texts.values())
    return table


def render_horizons(found: pd.DataFrame) -> Table:
    """:func:`~study.analysis.rates.exponents_against_rho` as a table of 80 columns."""
    notes = ["theory at rho: from equal descents of a step to equal outputs of the adapters."]
    notes += bracket_notes(found[found["exponent"].notna()])
    if (found["edges"] > 0).any():
        notes.append("Ranks with a best rate at an edge are left out: study rates --refine.")
    table = _table(
        "Exponent of the best learning rate with rank, by horizon",
        "\n".join(notes),
        ["optimizer, rule", "steps", "exponent", "theory at rho", "rho", "ranks", "seeds"],
        left=["optimizer, rule"],
    )
    for name, rule in _by_rule(found):
        last = rule["horizon"] == rule["horizon"].max()
        for row in rule[last | rule["exponent"].notna()].sort_values("horizon").to_dict("records"):
            table.add_row(
                Text(name),
                f"{row['horizon']:g}",
                exponent_text(row["exponent"], row["ci_low"], row["ci_high"]),
                interval_span(row["at_rho_low"], row["at_rho_high"]),
                "none" if pd.isna(row["rho"]) else f"{row['rho']:.2g}",
                str(row["ranks"]),
                str(row["seeds"]),
            )
            name = ""
    return table


def render_texts(title: str, rows: pd.DataFrame, caption: str = "", by: str = "") -> Table:
    """A frame of texts as a rich table; with ``by``, the rows of each of its values below it."""
    names = [str(name) for name in rows if name != by]
    table = _table(title, caption, names, left=names[:1])
    for part in groups(rows, [by]) if by else [rows]:
        if by:
            table.add_section()
            table.add_row(Text(printable(str(part[by].iloc[0])), style="bold"))
        for row in part[names].itertuples(index=False):
            table.add_row(*(Text(printable(str(text))) for text in row))
    return table


def _table(
    title: str, caption: str, columns: Sequence[str], left: Sequence[str], wrapped: bool = True
) -> Table:
    """An empty table with as many columns as fit: the box leaves a blank between them.

    Columns are justified to the right, except ``left``. ``wrapped``: whether long words of the
    first one go to the next line.
    """
    table = Table(
        title=title,
        caption=Text(caption, style="table.caption") if caption else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    for place, name in enumerate(columns):
        justify: Literal["left", "right"] = "left" if name in left else "right"
        table.add_column(name, justify=justify, no_wrap=place > 0 or not wrapped)
    return table


def _by_rule(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each rule with its name, by p and alpha."""
    rows = rows.assign(named=setting_labels(rows, distinguishing(rows, curve_columns(rows))))
    for rule in groups(rows.sort_values(list(OF_A_RULE)), OF_A_RULE):
        row = rule.iloc[0]
        words = rule_label(*row[list(RULE)]), str(row["named"])
        yield printable(", ".join(filter(None, (label(str(row["optimizer"])), *words)))), rule


def exponent_text(exponent: float, low: float, high: float) -> str:
    """``-0.67 [-0.80, -0.54]``; ``none`` without an exponent."""
    return "none" if pd.isna(exponent) else interval_text(exponent, low, high)


def interval_span(low: float, high: float) -> str:
    """``-0.87 to -0.43``; one number if both ends are equal; ``none`` without a prediction."""
    if pd.isna(low):
        return "none"
    ends = dict.fromkeys((rounded(low), rounded(high)))
    return " to ".join(ends)
