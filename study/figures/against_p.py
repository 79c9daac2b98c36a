"""The exponent in the rank against the p of the scaling rule: where a quantity's line crosses zero is its stable p."""

import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from study.figures import style
from study.figures.quantities import asymptote, fits
from study.figures.selection import Absent, Family, Rule, Tables, families, most_varied
from study.vocabulary.quantities import BACKWARD_IN, DESCENT, FORWARD_OUT, GRADIENT_NORM, Quantity

MOST_FAMILIES = 3
SHOWN: tuple[tuple[Quantity, int], ...] = (
    (GRADIENT_NORM, 0),
    (DESCENT, 0),
    (DESCENT, 1),
    (FORWARD_OUT, -1),
    (BACKWARD_IN, -1),
)
"""Quantities with their step; -1 is the last one probed."""
BEYOND = 0.25
"""How far outside the measured p a crossing is still looked for."""


@dataclass(frozen=True)
class Line:
    """A quantity's exponents at one step, by p, and what theory says of each (NaN: nothing)."""

    quantity: Quantity
    step: int
    last: bool
    p: np.ndarray
    exponent: np.ndarray
    low: np.ndarray
    high: np.ndarray
    predicted: np.ndarray

    @property
    def stable(self) -> tuple[float, float, float]:
        """p* with its interval: the p whose own 95 % intervals hold 0, linear in between; NaN where out of reach."""
        return (
            crossing(self.p, self.exponent),
            crossing(self.p, self.low),
            crossing(self.p, self.high),
        )


@style.paper()
def exponent_against_p(tables: Tables) -> Figure:
    """Exponents of the primary quantities against p, a panel per optimizer, each with its stable p marked.

    The exponents are those of the ``exponents`` table, over whatever rules the study has: ``lora`` is p = 1, ``rslora``
    p = 1/2. Theory: ``1/2 - p`` for the gradient norm; for the descent ``1 - 2p`` under SGD and ``1 - p`` under a
    sign-like optimizer.
    """
    if tables.exponents.empty or tables.cells.empty:
        raise Absent("no exponents in the tables: analyze the study first")
    lines = [(family, _lines(family, tables.exponents)) for family in families(tables.cells)]
    drawable = [family for family, found in lines if found]
    if not drawable:
        raise Absent("an exponent against p needs two scaling rules of different p in one setting")
    shown, left_out = most_varied(drawable, MOST_FAMILIES)
    drawn = [(family, found) for family, found in lines if any(family is one for one in shown)]

    alone = len(drawn) == 1
    column, above = (style.HALF, 0.9) if alone else (style.FULL, 1.1)
    page = style.figure(1, len(drawn), column=column, ratio=0.9, above=above)
    panels = page.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    for ax, (family, found) in zip(panels, drawn, strict=True):
        heading = textwrap.fill(family.label, int(16 * page.get_figwidth() / len(drawn)))
        _draw(ax, found, heading, named=alone)
    style.y_label(panels[0], "exponent in the rank", "slope of log quantity in log $r$")
    style.linear_axis(panels[0])
    handles = {_key(line): _handle(panels[0], line) for _, found in drawn for line in found}
    if not alone:
        page.legend(
            list(handles.values()), list(handles), loc="outside upper center", ncols=len(handles)
        )
    theory = any(np.isfinite(line.predicted).any() for _, found in drawn for line in found)
    return style.finish(
        page,
        "Bars: 95% intervals. $p^*$: the exponent of the rule that leaves the quantity level, with the $p$ whose "
        "own intervals hold 0.",
        "Dotted: theory." if theory else "",
        left_out,
    )


def crossing(p: np.ndarray, slope: np.ndarray) -> float:
    """The p at which ``slope`` falls through 0, linear between neighbours and up to :data:`BEYOND` outside of them.

    Exact wherever the slope is linear in p, as it is at steps 0 and 1. NaN where there is none.
    """
    there = np.isfinite(slope)
    p, slope = p[there], slope[there]
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
    found = []
    by_quantity: dict[str, list[tuple[Rule, pd.DataFrame]]] = {}
    for quantity, step in SHOWN:
        rules = by_quantity.setdefault(
            quantity.site,
            [(rule, fits(exponents, family, rule, quantity)) for rule in family.rules],
        )
        steps = {int(s) for _, rows in rules if len(rows) for s in rows["step"]}
        at = max(steps, default=0) if step < 0 else step
        points = [
            (rule.p, row)
            for rule, rows in rules
            if len(rows)
            for _, row in rows[rows["step"] == at].iterrows()
        ]
        # The same p by two names (lora and power with p = 1) is one measurement, not two.
        unique = {round(p, 9): row for p, row in points}
        if len(unique) < 2:
            continue
        ps = np.array(sorted(unique))
        rows = pd.DataFrame([unique[p] for p in ps])
        told = rows["predicted"].to_numpy(float)
        known = np.array([asymptote(quantity, family, p, at) for p in ps])
        exponent, low, high = (
            rows[name].to_numpy(float) for name in ("exponent", "ci_low", "ci_high")
        )
        predicted = np.where(np.isfinite(told), told, known)
        found.append(Line(quantity, at, step < 0, ps, exponent, low, high, predicted))
    return found


def _draw(ax: Axes, found: list[Line], heading: str, *, named: bool) -> None:
    """One setting's lines with their p*, and with ``named`` their names, in a legend above the panel.

    gids: ``line|bars|theory|star|reach <site> <step>``.
    """
    ax.axhline(0, color=style.FAINT, linewidth=0.6, zorder=1, gid="zero")
    for rule in (Rule.of("rslora", None), Rule.of("lora", None)):
        ax.axvline(
            rule.p,
            color=style.tint(rule, [rule]),
            linewidth=0.6,
            alpha=0.7,
            zorder=0.5,
            gid=f"at {rule.p:g}",
        )
    handles: list[Any] = []
    labels: list[str] = []
    for line in found:
        who = f"{line.quantity.site} {line.step}"
        handle = _handle(ax, line)
        look: dict[str, Any] = {"color": style.QUANTITY_LOOKS[line.quantity.site][0], "zorder": 3}
        ax.plot(line.p, line.predicted, color=style.INK, linestyle=(0, (0.7, 1.8)), linewidth=1.4, zorder=2,
                gid=f"theory {who}")  # fmt: skip
        ax.plot(line.p, line.exponent, **look, linewidth=0.9, linestyle=handle.get_linestyle(), gid=f"line {who}",
                marker=style.QUANTITY_LOOKS[line.quantity.site][1], markersize=3, markerfacecolor=handle.get_markerfacecolor())  # fmt: skip
        ax.vlines(line.p, line.low, line.high, **look, linewidth=1.6, alpha=0.45, gid=f"bars {who}")
        star, *ends = line.stable
        if np.isfinite(star):
            ax.plot([star], [0], marker=style.QUANTITY_LOOKS[line.quantity.site][1], markersize=6.5, markerfacecolor="none",
                    markeredgewidth=0.9, **{**look, "zorder": 4}, gid=f"star {who}")  # fmt: skip
            if np.isfinite(ends).all():
                ax.plot(
                    ends,
                    [0, 0],
                    linewidth=2.4,
                    alpha=0.5,
                    solid_capstyle="butt",
                    **look,
                    gid=f"reach {who}",
                )
        handles.append(handle)
        labels.append(f"{_key(line)}:  {_star(line)}" if named else _star(line))
    every = sorted({p for line in found for p in line.p})
    _p_axis(ax, every, [star for star, *_ in (line.stable for line in found) if np.isfinite(star)])
    above: dict[str, Any] = {
        "loc": "lower left",
        "bbox_to_anchor": (0.0, 1.02),
        "alignment": "left",
    }
    ax.legend(
        handles, labels, title=heading, title_fontproperties={"size": 8, "weight": "bold"}, **above
    )


def _p_axis(ax: Axes, ps: list[float], stars: list[float]) -> None:
    names = {
        0.5: "0.5\nrsLoRA",
        1.0: "1\nLoRA",
    }  # the others in two lines too, or they would sit higher
    ticks = sorted({*(p for p in ps if all(abs(p - q) > 0.2 or p == q for q in names)), *names})
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda p, _: names.get(round(p, 9), f"{p:g}\n ")))
    ax.xaxis.set_minor_locator(NullLocator())
    low, high = min(ps[0], 0.5, *stars), max(ps[-1], 1.0, *stars)
    ax.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    ax.set_xlabel(r"$p$ of $\gamma = \alpha\, r^{-p}$")


def _handle(ax: Axes, line: Line) -> Any:
    later = line.quantity is DESCENT and line.step > 0
    return ax.plot(
        [], [], color=style.QUANTITY_LOOKS[line.quantity.site][0], marker=style.QUANTITY_LOOKS[line.quantity.site][1], markersize=3,
        linestyle=(0, (3, 1.5)) if later else "solid", markerfacecolor="white" if later else style.QUANTITY_LOOKS[line.quantity.site][0],
    )[0]  # fmt: skip


def _key(line: Line) -> str:
    return f"{line.quantity.name}, {'last step' if line.last else f'step {line.step}'}"


def _star(line: Line) -> str:
    star, low, high = line.stable
    if not np.isfinite(star):
        return "no $p^*$ in reach"
    digits = 3 if high - low < 0.02 else 2
    said = f"$p^*$ = {style.number(star, digits)}"
    if np.isfinite(high - low):
        said += f" [{style.number(low, digits)}, {style.number(high, digits)}]"
    return said
