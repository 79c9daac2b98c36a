"""Scaling exponents over training, where a quantity that is stable at step 0 may not stay so, and
with and without quantisation of the base's weights.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.analysis.summary import rows_of_condition
from study.figures import style
from study.figures.captions import EXPONENT, on_batch, sentence_on_ci
from study.figures.laws import fits, rows_of
from study.figures.selection import Absent, Family, Rule, Tables, holding
from study.vocabulary.quantities import HELDOUT, PRIMARY
from study.vocabulary.thresholds import STABLE_RATIO

MOST_RULES = 6
OPEN = {"markersize": 2.6, "markerfacecolor": "white", "markeredgewidth": 0.7}
SHORT_LINES: dict[str, Any] = {
    "color": style.INK,
    "linestyle": "none",
    "marker": "_",
    "zorder": 3.5,
    "markersize": 8,
    "markeredgewidth": 1.1,
}
Fits = dict[tuple[Rule, str], pd.DataFrame]
"""By rule and name of quantity: the fits, one row per step."""
AS_LOADED = 0.0
"""For a base that is not quantised."""
NAMES = {AS_LOADED: "as loaded", 8.0: "8 bits", 4.0: "NF4"}
LOOKS: dict[float, dict[str, Any]] = {
    AS_LOADED: {"marker": "o", "color": style.INK},
    8.0: {"marker": "s", "color": "#2b6fc2"},
    4.0: {"marker": "D", "color": "#c2185b"},
}
"""By the number of bits. The hues differ from those of the rules."""
MARKER: dict[str, Any] = {"markersize": 3.4, "linestyle": "none"}
APART = 0.22
"""Distance between two numbers of bits, in rows."""


@style.paper()
def exponents_over_training(tables: Tables) -> Figure:
    """Scaling exponents of the primary quantities over training, one line per rule. In the grey
    band a quantity counts as stable.

    A panel per quantity, a row of panels per setting. The grey band is the margin of the verdicts:
    a change by less than a factor of 1.5 from the lowest to the highest rank. The two conditions of
    the paper are read on a held-out batch, if the study probed one, as in a report; all other
    quantities are read on the training batch.
    """
    if tables.exponents.empty or tables.cells.empty:
        raise Absent("no exponents in the tables: analyze the study first")
    absent = "no primary quantity with an exponent at two steps"
    drawn, left_out = holding(
        tables.cells, lambda family: _fits(family, tables.exponents), absent, rules=MOST_RULES
    )
    there = {name for rows in drawn.values() for _, name in rows}
    quantities = [quantity for quantity in PRIMARY if quantity.name in there]

    columns = len(quantities)
    ratio = 0.95 * columns / 4  # the height does not depend on the number of columns
    options: dict[str, Any] = {"above": 0.3 + 0.45 * len(drawn), "column": style.FULL}
    page, grid = style.panels(list(drawn), columns, ratio=ratio, sharex=True, **options)
    beside = sorted({rule for family in drawn for rule in family.rules[:MOST_RULES]})
    looks = {rule: style.look(rule, beside) | OPEN for rule in beside}
    for panels, (family, rows) in zip(grid, drawn.items(), strict=True):
        steps = np.concatenate([fit["step"].to_numpy(int) for fit in rows.values()])
        for ax, quantity in zip(panels, quantities, strict=True):
            here = {rule: fit for (rule, name), fit in rows.items() if name == quantity.name}
            _draw(ax, family.finite_ranks, here, looks)
            ax.set_title(f"{quantity.noun}\n{quantity.symbol}", linespacing=1.2)
            style.step_axis(ax, steps)
        style.y_axis(panels, "scaling exponent", "with rank")
    style.legend(page, {style.name(rule): look for rule, look in looks.items()})
    every = pd.concat(
        [fit.assign(name=name) for rows in drawn.values() for (_, name), fit in rows.items()]
    )
    heldout = set(every.loc[every["batch"] == HELDOUT, "name"])
    nouns = " and ".join(quantity.noun for quantity in PRIMARY if quantity.name in heldout)
    return style.finish(
        page,
        sentence_on_ci("Bands", every["interval"]),
        f"Grey: a change by less than a factor of {STABLE_RATIO:g} over these ranks.",
        "Short black lines: theory." if every["predicted"].notna().any() else "",
        f"On the held-out batch: {nouns}; on the training batch: all others."
        if nouns
        else on_batch(),
        left_out,
    )


def _fits(family: Family, exponents: pd.DataFrame) -> Fits:
    """The fits of every quantity that some rule has at two steps."""
    found: Fits = {}
    for quantity in PRIMARY:
        rows = rows_of_condition(quantity, exponents)
        by_rule = {rule: rows_of(rows, family, rule) for rule in family.rules[:MOST_RULES]}
        if any(len(one) > 1 for one in by_rule.values()):
            found |= {
                (rule, quantity.name): one.sort_values("step")
                for rule, one in by_rule.items()
                if len(one)
            }
    return found


def _draw(
    ax: Axes,
    ranks: list[float],
    rows: Mapping[Rule, pd.DataFrame],
    looks: Mapping[Rule, Mapping[str, Any]],
) -> None:
    """The exponents of one quantity. gids: ``curve|band|theory <rule>``, ``level``."""
    margin = np.log(STABLE_RATIO) / np.log(ranks[-1] / ranks[0])
    ax.axhspan(-margin, margin, color=style.FAINT, alpha=0.13, linewidth=0, zorder=0, gid="level")
    ax.axhline(0, color=style.FAINT, linewidth=0.6, zorder=1)
    for rule, fit in rows.items():
        who, look = style.gid(rule), looks[rule]
        step, ends = fit["step"], (fit["ci_low"], fit["ci_high"])
        style.band(ax, step, *ends, look["color"], f"band {who}", zorder=2)
        ax.plot(step, fit["exponent"], **look, zorder=3, gid=f"curve {who}")
        if fit["predicted"].notna().any():
            ax.plot(step, fit["predicted"], gid=f"theory {who}", **SHORT_LINES)


@style.paper()
def exponents_by_bits(tables: Tables) -> Figure:
    """Scaling exponents of the primary quantities, on the training batch, by the number of bits of
    the base's weights.

    A panel per rule, a row of panels per setting. A quantity is shown at the first step at which it
    has an exponent.
    """
    cells, exponents = tables.cells, tables.exponents
    if exponents.empty or cells.empty:
        raise Absent("no exponents in the tables: analyze the study first")
    absent = "exponents by bits need a study over model.quant_bits: sweep model.quant_bits=null,8,4"
    there = set(cells.get("quant_bits", pd.Series(dtype=float)).astype(float).fillna(AS_LOADED))
    bits = [one for one in LOOKS if one in there]
    if len(bits) < 2 or "quant_bits" not in exponents:
        raise Absent(absent)
    exponents = exponents.assign(bits=exponents["quant_bits"].astype(float).fillna(AS_LOADED))

    def of_family(family: Family) -> dict[Rule, pd.DataFrame]:
        return {rule: _exponents(family, rule, exponents) for rule in family.rules[:MOST_RULES]}

    drawn, left_out = holding(cells.drop(columns="quant_bits"), of_family, absent, rules=MOST_RULES)
    columns = max(map(len, drawn.values()))
    above = 0.35 + 0.25 * len(drawn)
    page, grid = style.panels(list(drawn), columns, ratio=0.62, above=above, sharex=True)
    places = {one: APART * (place - (len(bits) - 1) / 2) for place, one in enumerate(bits)}
    for panels, by_rule in zip(grid, drawn.values(), strict=True):
        for ax, (rule, rows) in style.each(panels, by_rule.items()):
            _draw_bits(ax, rows, places)
            ax.set_title(style.title(rule), loc="left")
    style.legend(page, {NAMES[one]: LOOKS[one] | MARKER for one in bits})
    every = pd.concat([rows for by_rule in drawn.values() for rows in by_rule.values()])
    return style.finish(
        page,
        sentence_on_ci("Bars", every["interval"]),
        "Dotted: theory. Grey line: independent of rank.",
        on_batch(),
        left_out,
    )


def _exponents(family: Family, rule: Rule, exponents: pd.DataFrame) -> pd.DataFrame:
    """The rows of each primary quantity at its first step, with its ``name`` and ``noun``."""
    found = []
    for quantity in PRIMARY:
        fit = fits(exponents, family, rule, quantity)
        fit = fit[fit["step"] == fit["step"].min()]
        fit = fit[~fit["bits"].duplicated(keep=False)]
        found.append(fit.assign(name=quantity.name, noun=quantity.noun))
    return pd.concat(found)


def _draw_bits(ax: Axes, rows: pd.DataFrame, places: Mapping[float, float]) -> None:
    """The exponents of one rule. ``places``: the number of bits above or below its quantity.

    gids: ``<bits>|bars <bits>|theory <bits> <quantity's name>``.
    """
    names = rows[["name", "noun", "step"]].drop_duplicates("name")
    lines = {name: line for line, name in enumerate(names["name"])}
    for row in rows[rows["bits"].isin(list(places))].to_dict("records"):
        y, look = lines[row["name"]] + places[row["bits"]], LOOKS[row["bits"]]
        who = f"{row['bits']:g} {row['name']}"
        ax.plot([row["exponent"]], [y], **look, **MARKER, zorder=3, gid=who)
        bar: dict[str, Any] = {"color": look["color"], "linewidth": 0.8, "zorder": 2}
        ax.hlines([y], row["ci_low"], row["ci_high"], gid=f"bars {who}", **bar)
        if np.isfinite(row["predicted"]):
            dots: dict[str, Any] = {"width": 1.4, "linestyle": style.DOTTED, "zorder": 1.5}
            ends = [row["predicted"]], y - APART / 2, y + APART / 2
            style.bars(ax, *ends, style.INK, f"theory {who}", **dots)
    ax.axvline(0, color=style.FAINT, linewidth=0.6, zorder=1)
    ax.set_yticks(range(len(names)), [f"{row.noun}\nstep {row.step}" for row in names.itertuples()])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(EXPONENT)
