"""The scaling exponent against the p of the scaling rule. A quantity is stable where it is 0."""

import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from study.figures import style
from study.figures.captions import CI, EXPONENT, on_batch, plain, span
from study.figures.laws import fits
from study.figures.selection import Absent, Family, Rule, Tables, families, most_varied
from study.vocabulary.quantities import DESCENT, PRIMARY, Quantity
from study.vocabulary.scaling import RULES

MOST_FAMILIES = 3
BEYOND = 0.25
"""How far outside the measured p a crossing is extrapolated."""
LONGEST_BAR = 0.5
"""How far bars extend the y axis at either end, as a share of the range of the exponents."""


@dataclass(frozen=True)
class Line:
    """The exponents of a quantity at one step, by p, with predictions (NaN if there is none).

    ``first``: whether the step is the first of those shown of the quantity. ``last``: whether it
    is shown as the last step measured.
    """

    quantity: Quantity
    step: int
    first: bool
    last: bool
    p: np.ndarray
    exponent: np.ndarray
    low: np.ndarray
    high: np.ndarray
    predicted: np.ndarray

    @property
    def stable(self) -> tuple[float, float, float]:
        """p* and its interval: the p at which the CI of the exponent contains 0, interpolated
        linearly. NaN if there is none within :data:`BEYOND`."""
        return (
            crossing(self.p, self.exponent),
            crossing(self.p, self.low),
            crossing(self.p, self.high),
        )

    def name(self, last: str) -> str:
        """The quantity and its step; ``last``: how the last step is called."""
        return f"{self.quantity.noun}, {last if self.last else f'step {self.step}'}"

    @property
    def gid(self) -> str:
        return f"{self.quantity.site} {self.step}"

    @property
    def look(self) -> dict[str, Any]:
        """A second step of a quantity is dashed, with open markers."""
        colour, marker = style.quantity_look(self.quantity)
        return {
            "color": colour,
            "marker": marker,
            "markersize": 3,
            "markerfacecolor": colour if self.first else "white",
            "linestyle": "solid" if self.first else (0, (3, 1.5)),
        }


@style.paper()
def exponent_against_p(tables: Tables) -> Figure:
    """Scaling exponents of the primary quantities, on the training batch, against p of the rule
    ``gamma = alpha r^-p``. Large open markers show p*, the p at which a quantity does not depend on
    the rank.

    A panel per setting, over the rules that the study has: ``lora`` is p = 1, ``rslora`` p = 1/2.
    With one setting the legend has the values of p*.
    """
    if tables.exponents.empty or tables.cells.empty:
        raise Absent("no exponents in the tables: analyze the study first")
    every = [(family, _lines(family, tables.exponents)) for family in families(tables.cells)]
    drawable = [(family, lines) for family, lines in every if lines]
    if not drawable:
        raise Absent("an exponent against p needs two scaling rules of different p in one setting")
    drawn, left_out = most_varied(drawable, MOST_FAMILIES, lambda one: one[0])
    every_line = [line for _, lines in drawn for line in lines]
    ends = span(line.step for line in every_line if line.last) if _any_last(every_line) else ""
    last = "last step" if "–" in ends else f"step {ends}"

    alone = len(drawn) == 1
    page, [panels] = style.panels([""], len(drawn), ratio=0.9, above=0.9 if alone else 0.7)
    limits = _limits(every_line)
    for ax, (family, lines) in zip(panels, drawn, strict=True):
        _draw(ax, lines, limits)
        _p_axis(ax, every_line)
        title = plain(textwrap.fill(family.label, int(16 * page.get_figwidth() / len(drawn))))
        ax.set_title(title, loc="left", fontweight="bold")
    style.y_label(panels[0], EXPONENT, "slope of log quantity in log $r$")
    style.linear_axis(panels[0])
    _legend(page, panels[0], every_line, last, alone=alone)
    cut = any((line.low < limits[0]).any() or (line.high > limits[1]).any() for line in every_line)
    theory = any(np.isfinite(line.predicted).any() for line in every_line)
    in_brackets = f"; in brackets: the $p$ at which the {CI} contains 0" if alone else ""
    return style.finish(
        page,
        f"Bars: {CI} of the exponent. $p^{{\\star}}$ (large open markers): the $p$ at which the "
        f"exponent is 0{in_brackets}.",
        "A bar that reaches the edge of the panel continues beyond it." if cut else "",
        "Dotted: theory." if theory else "",
        f"Last step: the last one that was probed, {ends}." if "–" in ends else "",
        _definitions(every_line),
        on_batch(),
        left_out,
        shown=[family for family, _ in drawn],
    )


def _any_last(lines: list[Line]) -> bool:
    return any(line.last for line in lines)


def _legend(page: Figure, ax: Axes, every: list[Line], last: str, *, alone: bool) -> None:
    """One legend above the panels. With one setting it has the values of p*."""
    named = {line.name(last): line for line in every}
    handles = [ax.plot([], [], **line.look)[0] for line in named.values()]
    labels = [f"{name}:  {_star(line)}" if alone else name for name, line in named.items()]
    if alone:
        style.legend_above(ax, handles, labels, "")
    else:
        columns = 3 if len(labels) > 4 else len(labels)
        page.legend(handles, labels, loc="outside upper left", ncols=columns)


def _definitions(lines: list[Line]) -> str:
    """``Adapter output: rms of γBAx; ...``"""
    told = {line.quantity.noun: line.quantity.symbol for line in lines}
    if DESCENT.noun in told:
        told[DESCENT.noun] += r" with the update $\Delta$"
    text = "; ".join(f"{noun}: {symbol}" for noun, symbol in told.items())
    return f"{text[:1].upper()}{text[1:]}."


def _limits(lines: list[Line]) -> tuple[float, float]:
    """The y range: 0, all exponents and, as far as :data:`LONGEST_BAR`, their intervals."""
    middle = np.concatenate([[0.0], *(line.exponent for line in lines)])
    ends = np.concatenate([values for line in lines for values in (line.low, line.high)])
    ends = np.append(ends[np.isfinite(ends)], middle)
    low, high = float(np.nanmin(middle)), float(np.nanmax(middle))
    reach = LONGEST_BAR * (high - low or 1.0)
    low, high = max(float(ends.min()), low - reach), min(float(ends.max()), high + reach)
    margin = 0.06 * (high - low or 1.0)
    return low - margin, high + margin


def crossing(p: np.ndarray, slope: np.ndarray) -> float:
    """The p at which ``slope`` falls through 0; NaN if there is none.

    Linear between neighbours and up to :data:`BEYOND` outside of them: exact where the slope is
    linear in p, as at steps 0 and 1.
    """
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


def _lines(family: Family, exponents: pd.DataFrame) -> list[Line]:
    """The lines of a family, for every primary quantity and step with two values of p."""
    found = []
    for quantity in PRIMARY:
        by_rule = [(rule, fits(exponents, family, rule, quantity)) for rule in family.rules]
        by_rule = [(rule, rows) for rule, rows in by_rule if len(rows)]
        measured = {int(step) for _, rows in by_rule for step in rows["step"]}
        for place, step in enumerate(quantity.primary_at):
            at = max(measured, default=0) if step == "last" else step
            points = [
                (rule.p, row)
                for rule, rows in by_rule
                for _, row in rows[rows["step"] == at].iterrows()
            ]
            # Two names of one p (lora, and power with p = 1) are one measurement.
            unique = {round(p, 9): row for p, row in points}
            if len(unique) > 1:
                p = np.array(sorted(unique))
                at_p = pd.DataFrame([unique[one] for one in p])
                names = ("exponent", "ci_low", "ci_high", "predicted")
                values = [at_p[name].to_numpy(float) for name in names]
                found.append(Line(quantity, at, place == 0, step == "last", p, *values))
    return found


def _draw(ax: Axes, lines: list[Line], limits: tuple[float, float]) -> None:
    """The lines of one setting, within the y range ``limits``.

    gids: ``line|bars|theory|star|reach <site> <step>``.
    """
    ax.axhline(0, color=style.FAINT, linewidth=0.6, zorder=1, gid="zero")
    for rule in (Rule.of(name, None) for name, row in RULES.items() if row.p is not None):
        ax.axvline(
            rule.p, color=style.tint(rule, [rule]), linewidth=0.5, zorder=0.5, gid=f"at {rule.p:g}"
        )
    for line in lines:
        _draw_line(ax, line)
    ax.set_ylim(*limits)


def _draw_line(ax: Axes, line: Line) -> None:
    """The line, its bars and theory; a large open marker at p*, and a bar along its interval."""
    colour, marker = style.quantity_look(line.quantity)
    ax.plot(line.p, line.exponent, **line.look, linewidth=0.9, zorder=3, gid=f"line {line.gid}")
    bars = style.keywords(width=0.7, zorder=2.8)
    style.bars(ax, line.p, line.low, line.high, colour, f"bars {line.gid}", **bars)
    if np.isfinite(line.predicted).any():
        dots = style.keywords(color=style.INK, linestyle=style.DOTTED, linewidth=1.4, zorder=3.2)
        ax.plot(line.p, line.predicted, gid=f"theory {line.gid}", **dots)
    star, *ends = line.stable
    if np.isfinite(star):
        open_marker = style.keywords(markersize=6.5, markerfacecolor="none", markeredgewidth=0.9)
        look = style.keywords(color=colour, marker=marker, zorder=4, **open_marker)
        ax.plot([star], [0], gid=f"star {line.gid}", **look)
    if np.isfinite([star, *ends]).all():
        thick = style.keywords(linewidth=1.6, solid_capstyle="butt", zorder=3)
        ax.plot(ends, [0, 0], color=colour, gid=f"reach {line.gid}", **thick)


def _p_axis(ax: Axes, lines: list[Line]) -> None:
    """Ticks at the measured p, and at the p of named rules with the name on a second line.

    ``lines``: those of all panels, so that the panels have one axis.
    """
    ps = sorted({float(p) for line in lines for p in line.p})
    stars = [star for line in lines for star in line.stable if np.isfinite(star)]
    named = {round(rule.p, 9): rule.label for rule in RULES.values() if rule.p is not None}
    low, high = min([ps[0], *named, *stars]), max([ps[-1], *named, *stars])
    if len(ps) < 3:  # only a few ticks would be left
        ps = [float(p) for p in np.arange(-2, 3, 0.25) if low <= p <= high]
    others = [p for p in ps if p in named or all(abs(p - other) > 0.2 for other in named)]
    ax.xaxis.set_major_locator(FixedLocator(sorted({*others, *named})))
    ax.xaxis.set_major_formatter(
        # Unnamed ticks get an empty second line, or their numbers would sit lower than the others.
        FuncFormatter(lambda p, _: f"{p:.4g}\n{named.get(round(p, 9), ' ')}")
    )
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    ax.set_xlabel(r"$p$ of $\gamma = \alpha\, r^{-p}$")


def _star(line: Line) -> str:
    """``p* = 0.50 [0.49, 0.52]``; with three digits if the interval is narrow."""
    star, low, high = line.stable
    if not np.isfinite(star):
        return f"no $p^{{\\star}}$ within {BEYOND:g} of these $p$"
    digits = 3 if high - low < 0.02 else 2
    text = f"$p^{{\\star}}$ = {style.number(star, digits)}"
    if np.isfinite(high - low):
        text += f" [{style.number(low, digits)}, {style.number(high, digits)}]"
    return text
