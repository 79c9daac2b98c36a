"""Exponents with and without quantisation: does a base held in fewer bits scale otherwise?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.figures import style
from study.figures.quantities import asymptote, fits
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

MOST_FAMILIES, MOST_RULES = 4, 6
LOOKS = {
    None: ("as loaded", "o", style.INK),
    8: ("8 bits", "s", "#2b6fc2"),
    4: ("4 bits", "D", "#c2185b"),
}
"""By bits: the name, the marker and the colour; the hues keep clear of the rules'."""
_APART = 0.22  # of a row, between two numbers of bits


@style.paper()
def exponents_by_bits(tables: Tables) -> Figure:
    """The primary quantities' exponents with their intervals, a row each and a mark per number of bits.

    A panel per rule, a row of panels per setting; the step is the first that a quantity has an exponent at. Theory,
    which knows nothing of the weights, is dotted. Raises :class:`Absent` for a study that was run on one kind of base.
    """
    if tables.exponents.empty or tables.cells.empty:
        raise Absent("no exponents in the tables: analyze the study first")
    if "quant_bits" not in tables.cells or "quant_bits" not in tables.exponents:
        raise Absent("exponents by bits need a study over model.quant_bits")
    bits = [value for value in LOOKS if value in {_bits(b) for b in tables.cells["quant_bits"]}]
    if len(bits) < 2:
        raise Absent(
            "exponents by bits need a study over model.quant_bits, such as model.quant_bits=null,8,4"
        )
    found = families(tables.cells.drop(columns="quant_bits"))
    shown, left_out = most_varied(found, MOST_FAMILIES)
    drawn = [family for family in found if any(family is one for one in shown)]
    columns = max(min(len(family.rules), MOST_RULES) for family in drawn)

    column = style.FULL if columns > 1 else style.HALF
    page = style.figure(
        len(drawn), columns, column=column, ratio=0.62, above=0.35 + 0.25 * len(drawn)
    )
    intervals: set[str] = set()
    for part, family in zip(style.rows(page, [f.label for f in drawn]), drawn, strict=True):
        panels = part.subplots(1, columns, sharex=True, sharey=True, squeeze=False)[0]
        for ax, rule in zip(panels, family.rules, strict=False):
            intervals |= _draw(ax, family, rule, tables.exponents, bits)
        for ax in panels[len(family.rules) :]:
            ax.set_visible(False)
    handles = [page.axes[0].plot([], [], **_look(one))[0] for one in bits]
    page.legend(
        handles, [LOOKS[one][0] for one in bits], loc="outside upper right", ncols=len(bits)
    )
    over = " or ".join(
        text
        for kind, text in (("seeds", "over seeds"), ("ranks", "over ranks, there being one seed"))
        if kind in intervals
    )
    return style.finish(
        page,
        f"Bars: 95% intervals ({over})." if over else "",
        "Dotted: theory, which does not know the weights. Grey line: level in the rank.",
        left_out,
        rules_left_out(drawn, MOST_RULES),
    )


def _draw(
    ax: Axes, family: Family, rule: Rule, exponents: pd.DataFrame, bits: Sequence[int | None]
) -> set[str]:
    """One rule's exponents; what their intervals are over. gids: ``<bits>|bars <bits>|theory <quantity's name>``."""
    rows, names, intervals = 0, [], set()
    for quantity in PRIMARY:
        fit = fits(exponents, family, rule, quantity)
        if fit.empty:
            continue
        fit = fit[fit["step"] == fit["step"].iloc[0]]
        for place, one in enumerate(bits):
            mine = fit[[_bits(value) == one for value in fit["quant_bits"]]]
            if len(mine) != 1:
                continue
            row, y = mine.iloc[0], rows + _APART * (place - (len(bits) - 1) / 2)
            ax.plot([row["exponent"]], [y], **_look(one), zorder=3, gid=f"{one} {quantity.name}")
            ax.hlines([y], [row["ci_low"]], [row["ci_high"]], color=LOOKS[one][2], linewidth=1.8, alpha=0.45, zorder=2,
                      gid=f"bars {one} {quantity.name}")  # fmt: skip
            intervals.add(str(row["interval"]))
        told = _told(fit, quantity, family, rule)
        if np.isfinite(told):
            ax.vlines([told], rows - 0.4, rows + 0.4, color=style.INK, linestyle=(0, (0.7, 1.8)), linewidth=1.4,
                      zorder=1.5, gid=f"theory {quantity.name}")  # fmt: skip
        names.append(f"{quantity.name}\nstep {int(fit['step'].iloc[0])}")
        rows += 1
    ax.axvline(0, color=style.FAINT, linewidth=0.6, zorder=1)
    ax.set_yticks(range(rows), names)
    ax.set_ylim(rows - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.set_title(style.title(rule), loc="left")
    ax.set_xlabel("exponent in the rank")
    return intervals


def _told(fit: pd.DataFrame, quantity: Quantity, family: Family, rule: Rule) -> float:
    """Theory's exponent: the table's own (the mean over bits: they differ by what was measured), or the asymptote."""
    predicted = fit["predicted"].to_numpy(float)
    if np.isfinite(predicted).any():
        return float(np.nanmean(predicted))
    return asymptote(quantity, family, rule.p, int(fit["step"].iloc[0]))


def _bits(value: float | None) -> int | None:
    return None if value is None or np.isnan(value) else int(value)


def _look(bits: int | None) -> dict[str, Any]:
    _, marker, colour = LOOKS[bits]
    return {"color": colour, "marker": marker, "markersize": 3.4, "linestyle": "none"}
