"""Scaling exponents with and without quantisation of the base's weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.figures import style
from study.figures.captions import EXPONENT, on_batch, sentence_on_ci
from study.figures.laws import fits
from study.figures.selection import Absent, Family, Rule, Tables, holding
from study.vocabulary.quantities import PRIMARY

MOST_RULES = 6
AS_LOADED = 0.0
"""For a base that is not quantised."""
NAMES = {AS_LOADED: "as loaded", 8.0: "8 bits", 4.0: "4 bits"}
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
            _draw(ax, rows, places)
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


def _draw(ax: Axes, rows: pd.DataFrame, places: Mapping[float, float]) -> None:
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
