"""Scaling exponents with and without quantisation of the base's weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.figures import style
from study.figures.captions import EXPONENT, on_batch, sentence_on_ci
from study.figures.laws import fits
from study.figures.selection import (
    Absent,
    Family,
    Rule,
    Tables,
    families,
    most_varied,
    rules_left_out,
)
from study.vocabulary.quantities import PRIMARY, Quantity

MOST_FAMILIES, MOST_RULES = 3, 6
LOOKS = {
    None: ("as loaded", "o", style.INK),
    8: ("8 bits", "s", "#2b6fc2"),
    4: ("4 bits", "D", "#c2185b"),
}
"""Name, marker and colour by the number of bits. The hues differ from those of the rules."""
APART = 0.22
"""Distance between two numbers of bits, in rows."""


@style.paper()
def exponents_by_bits(tables: Tables) -> Figure:
    """Scaling exponents of the primary quantities, on the training batch, by the number of bits of
    the base's weights.

    A panel per rule, a row of panels per setting. A quantity is shown at the first step at which it
    has an exponent.
    """
    if tables.exponents.empty or tables.cells.empty:
        raise Absent("no exponents in the tables: analyze the study first")
    bits: list[int | None] = []
    if "quant_bits" in tables.cells and "quant_bits" in tables.exponents:
        there = {_bits(value) for value in tables.cells["quant_bits"]}
        bits = [one for one in LOOKS if one in there]
    if len(bits) < 2:
        raise Absent(
            "exponents by bits need a study over model.quant_bits: sweep model.quant_bits=null,8,4"
        )
    every = families(tables.cells.drop(columns="quant_bits"))
    drawn, left_out = most_varied(every, MOST_FAMILIES)
    columns = max(min(len(family.rules), MOST_RULES) for family in drawn)
    labels, above = [family.label for family in drawn], 0.35 + 0.25 * len(drawn)
    page, grid = style.panels(labels, columns, ratio=0.62, above=above, sharex=True)
    intervals: set[str] = set()
    for panels, family in zip(grid, drawn, strict=True):
        rules = family.rules[:columns]
        for ax, rule in zip(style.first(panels, len(rules)), rules, strict=True):
            intervals |= _draw(ax, family, rule, tables.exponents, bits)
    handles = [page.axes[0].plot([], [], **_look(one))[0] for one in bits]
    page.legend(
        handles, [LOOKS[one][0] for one in bits], loc="outside upper right", ncols=len(bits)
    )
    return style.finish(
        page,
        sentence_on_ci("Bars", intervals),
        "Dotted: theory. Grey line: independent of rank.",
        on_batch(),
        left_out,
        rules_left_out(drawn, MOST_RULES),
        shown=drawn,
    )


def _draw(
    ax: Axes, family: Family, rule: Rule, exponents: pd.DataFrame, bits: Sequence[int | None]
) -> set[str]:
    """The exponents of one rule. Return the kinds of their intervals.

    gids: ``<bits>|bars <bits>|theory <bits> <quantity's name>``.
    """
    names: list[str] = []
    intervals: set[str] = set()
    for quantity in PRIMARY:
        fit = fits(exponents, family, rule, quantity)
        if fit.empty:
            continue
        step = int(fit["step"].iloc[0])
        fit = fit[fit["step"] == step]
        intervals |= _draw_row(ax, fit, quantity, len(names), bits)
        names.append(f"{quantity.noun}\nstep {step}")
    ax.axvline(0, color=style.FAINT, linewidth=0.6, zorder=1)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.set_title(style.title(rule), loc="left")
    ax.set_xlabel(EXPONENT)
    return intervals


def _draw_row(
    ax: Axes, fit: pd.DataFrame, quantity: Quantity, row: int, bits: Sequence[int | None]
) -> set[str]:
    """A marker and a bar per number of bits. Return the kinds of intervals."""
    intervals = set()
    for place, one in enumerate(bits):
        mine = fit[[_bits(value) == one for value in fit["quant_bits"]]]
        if len(mine) != 1:
            continue
        found, y = mine.iloc[0], row + APART * (place - (len(bits) - 1) / 2)
        who = f"{one} {quantity.name}"
        ax.plot([found["exponent"]], [y], **_look(one), zorder=3, gid=who)
        ends, colour = ([found["ci_low"]], [found["ci_high"]]), LOOKS[one][2]
        ax.hlines([y], *ends, color=colour, linewidth=0.8, zorder=2, gid=f"bars {who}")
        if np.isfinite(found["predicted"]):
            x, low, high = [found["predicted"]], y - APART / 2, y + APART / 2
            look = style.keywords(width=1.4, linestyle=style.DOTTED, zorder=1.5)
            style.bars(ax, x, low, high, style.INK, f"theory {who}", **look)
        intervals.add(str(found["interval"]))
    return intervals


def _bits(value: float | None) -> int | None:
    return None if value is None or np.isnan(value) else int(value)


def _look(bits: int | None) -> dict[str, Any]:
    _, marker, colour = LOOKS[bits]
    return {"color": colour, "marker": marker, "markersize": 3.4, "linestyle": "none"}
