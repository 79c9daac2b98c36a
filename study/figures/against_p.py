"""The scaling exponent against the p of the scaling rule. A quantity is stable where it is 0."""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from study.figures import style
from study.figures.captions import CI, EXPONENT, on_batch, plain
from study.figures.laws import fits
from study.figures.selection import Absent, DrawnRule, Family, Tables, holding
from study.vocabulary.quantities import DESCENT, PRIMARY, Quantity
from study.vocabulary.scaling import RULES

BEYOND = 0.25
"""How far outside the measured p a crossing is extrapolated."""
NEAR = 0.02
"""A crossing this close to the measured p is not called extrapolated."""
BLANK = 0.1
"""The y axis beyond the exponents at either end, as a share of their range."""


class Line(NamedTuple):
    """The exponents of a quantity at one step: a row of the table for each ``p``, and p* with its
    interval. That is the p at which the CI of the exponent contains 0, interpolated linearly; NaN
    if there is none within :data:`BEYOND`."""

    quantity: Quantity
    step: int
    is_first: bool
    rows: pd.DataFrame
    star: float
    low: float
    high: float

    @property
    def p(self) -> np.ndarray:
        return self.rows["p"].to_numpy(float)

    @property
    def is_inside(self) -> bool:
        """Whether p* or its interval is among the measured p. Otherwise it is extrapolated."""
        near = self.p[0] - NEAR <= self.star <= self.p[-1] + NEAR
        return bool(near or (self.low <= self.p[-1] and self.high >= self.p[0]))

    @property
    def name(self) -> str:
        return f"{self.quantity.noun}, step {self.step}"

    @property
    def look(self) -> dict[str, Any]:
        """A second step of a quantity is dashed, with open markers."""
        looks = style.QUANTITY_LOOKS
        colour, marker = looks[PRIMARY.index(self.quantity) % len(looks)]
        return {
            "color": colour,
            "marker": marker,
            "markersize": 3,
            "markerfacecolor": colour if self.is_first else "white",
            "linestyle": "solid" if self.is_first else (0, (3, 1.5)),
        }


@style.paper()
def exponent_against_p(tables: Tables) -> Figure:
    """Scaling exponents of the primary quantities, on the training batch, against p of the rule
    ``gamma = alpha r^-p``. Large markers show p*, the p at which a quantity does not depend on the
    rank. They are hollow where p* is extrapolated beyond the measured p.

    A panel per setting, over the rules that the study has: ``lora`` is p = 1, ``rslora`` p = 1/2.
    With one setting the legend has the values of p*.
    """
    if tables.exponents.empty or tables.cells.empty:
        raise Absent("no exponents in the tables: analyze the study first")
    absent = "an exponent against p needs two scaling rules of different p in one setting"
    drawn, left_out = holding(tables.cells, lambda family: _lines(family, tables.exponents), absent)
    every = [line for lines in drawn.values() for line in lines]
    alone = len(drawn) == 1
    above = 0.9 if alone else 0.7
    page, [panels] = style.panels(list(drawn), len(drawn), ratio=0.9, above=above, labels=[""])
    # 0 and all exponents; very long bars are cut.
    rows = pd.concat([line.rows for line in every])
    low, high = min(0.0, rows["exponent"].min()), max(0.0, rows["exponent"].max())
    margin = BLANK * (high - low or 1.0)
    low, high = low - margin, high + margin
    for ax, (family, lines) in zip(panels, drawn.items(), strict=True):
        _draw(ax, lines)
        _p_axis(ax, every)
        ax.set_ylim(low, high)
        title = plain(textwrap.fill(family.label, int(16 * page.get_figwidth() / len(drawn))))
        ax.set_title(title, loc="left", fontweight="bold")
    style.y_axis(panels, EXPONENT, "slope of log quantity in log $r$")
    stars = {f"{line.name}:  {_star(line)}" if alone else line.name: line.look for line in every}
    columns = 1 if alone else min(3, len(stars))
    style.legend(page, stars, columns, "outside upper left")
    told = {line.quantity.noun: line.quantity.symbol for line in every}
    if DESCENT.noun in told:
        told[DESCENT.noun] += r" with the update $\Delta$"
    symbols = "; ".join(f"{noun}: {symbol}" for noun, symbol in told.items())
    return style.finish(
        page,
        f"Bars: {CI} of the exponent. $p^{{\\star}}$ (large markers): the $p$ at which the "
        "exponent is 0"
        + (f"; in brackets: the $p$ at which the {CI} contains 0." if alone else "."),
        ""
        if all(line.is_inside for line in every)
        else "Hollow: extrapolated beyond the measured $p$, so no value is given.",
        "A bar that reaches the edge of the panel continues beyond it."
        if rows["ci_low"].min() < low or rows["ci_high"].max() > high
        else "",
        "Dotted: theory." if rows["predicted"].notna().any() else "",
        f"{symbols[0].upper()}{symbols[1:]}.",
        on_batch(),
        left_out,
    )


def _lines(family: Family, exponents: pd.DataFrame) -> list[Line]:
    """The lines of a family, for every primary quantity and step with two values of p."""
    found = []
    for quantity in PRIMARY:
        by_rule = [fits(exponents, family, rule, quantity) for rule in family.rules]
        measured = pd.concat(by_rule)
        # Two names of one p (lora, and power with p = 1) are one measurement.
        measured = measured.assign(p=measured["exponent_p"].astype(float).round(9))
        measured = measured.dropna(subset="p")  # a rule that is no power has none
        for place, step in enumerate(quantity.primary_at):
            at = measured["step"].max() if step == "last" else step
            rows = measured[measured["step"] == at].drop_duplicates("p", keep="last")
            rows = rows.sort_values("p")
            if len(rows) > 1:
                slopes = rows[["exponent", "ci_low", "ci_high"]].to_numpy(float).T
                stable = (crossing(rows["p"].to_numpy(float), slope) for slope in slopes)
                found.append(Line(quantity, int(at), place == 0, rows, *stable))
    return found


def crossing(p: np.ndarray, slope: np.ndarray) -> float:
    """The p at which ``slope`` falls through 0, linear between neighbours and up to :data:`BEYOND`
    outside; NaN if there is none."""
    known = np.isfinite(slope)
    p, slope = p[known], slope[known]
    if len(p) < 2:
        return np.nan
    falls = np.flatnonzero((slope[:-1] >= 0) & (slope[1:] <= 0) & (slope[:-1] > slope[1:]))
    at = int(falls[0]) if len(falls) else 0 if slope[0] < 0 else len(p) - 2
    gain = slope[at] - slope[at + 1]
    if not gain > 0:
        return np.nan
    found = p[at] + slope[at] / gain * (p[at + 1] - p[at])
    return float(found) if p[0] - BEYOND <= found <= p[-1] + BEYOND else np.nan


def _draw(ax: Axes, lines: Sequence[Line]) -> None:
    """The lines of one setting, their bars and theory. A large marker is at p*, hollow if it is
    extrapolated; otherwise with a bar along its interval."""
    ax.axhline(0, color=style.FAINT, linewidth=0.6, zorder=1, gid="zero")
    for rule in (DrawnRule.of(name) for name, row in RULES.items() if row.p is not None):
        colour = style.look(rule, [rule])["color"]
        ax.axvline(rule.p, color=colour, linewidth=0.5, zorder=0.5, gid=f"at {rule.p:g}")
    for line in lines:
        who, rows = f"{line.quantity.site} {line.step}", line.rows
        colour, marker = line.look["color"], line.look["marker"]
        ax.plot(line.p, rows["exponent"], **line.look, zorder=3, gid=f"line {who}")
        ends = rows["ci_low"], rows["ci_high"]
        ax.vlines(line.p, *ends, color=colour, linewidth=0.7, zorder=2.8, gid=f"bars {who}")
        if rows["predicted"].notna().any():
            dots = style.PREDICTED | {"linewidth": 1.4}
            ax.plot(line.p, rows["predicted"], gid=f"theory {who}", **dots)
        if np.isfinite(line.star):
            fill = colour if line.is_inside else "none"
            look: dict[str, Any] = {"marker": marker, "markersize": 6.5, "markerfacecolor": fill}
            look |= {"color": colour, "markeredgewidth": 0.9, "zorder": 4}
            ax.plot([line.star], [0], gid=f"star {who}", **look)
        if line.is_inside and np.isfinite([line.low, line.high]).all():
            look = {"color": colour, "linewidth": 1.6, "solid_capstyle": "butt", "zorder": 3}
            ax.plot([line.low, line.high], [0, 0], gid=f"reach {who}", **look)


def _p_axis(ax: Axes, lines: Sequence[Line]) -> None:
    """Ticks at the measured p, and at the p of named rules with the name on a second line."""
    ps = sorted({float(p) for line in lines for p in line.p})
    stars = [p for line in lines for p in (line.star, line.low, line.high) if np.isfinite(p)]
    named = {round(row.p, 9): row.label for row in RULES.values() if row.p is not None}
    low, high = min([ps[0], *named, *stars]), max([ps[-1], *named, *stars])
    if len(ps) < 3:  # only a few ticks would be left
        ps = [float(p) for p in np.arange(-2, 3, 0.25) if low <= p <= high]
    others = [p for p in ps if all(abs(p - other) > 0.2 for other in named)]
    ax.xaxis.set_major_locator(FixedLocator(sorted({*others, *named})))
    # Unnamed ticks get an empty second line, or their numbers would sit lower than the others.
    ax.xaxis.set_major_formatter(lambda p, _: f"{p:.4g}\n{named.get(round(p, 9), ' ')}")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    ax.set_xlabel(r"$p$ of $\gamma = \alpha\, r^{-p}$")


def _star(line: Line) -> str:
    """``p* = 0.50 [0.49, 0.52]``."""
    if not np.isfinite(line.star):
        return f"no $p^{{\\star}}$ within {BEYOND:g} of these $p$"
    if not line.is_inside:
        return "$p^{\\star}$ extrapolated"
    return f"$p^{{\\star}}$ = {style.interval(line.star, line.low, line.high, most=2)}"
