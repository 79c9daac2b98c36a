"""Axes, numbers and legends: rank axes, short logarithmic axes, and the legend of ranks."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from study.figures.selection import Rule
from study.figures.style.looks import shade

TICK_INCHES = 0.27
"""Width of a four-digit tick label and a gap."""
ROW_INCHES = 0.155
"""Height of a row in the legend of ranks."""


def y_label(ax: Axes, quantity: str, definition: str = "") -> None:
    """Label the y axis with the quantity and, on a second line, its unit or formula."""
    ax.set_ylabel(f"{quantity}\n{definition}" if definition else quantity, linespacing=1.15)


def hide(panels: Iterable[Axes]) -> None:
    """Hide panels of the grid that have nothing to show."""
    for ax in panels:
        ax.set_visible(False)


def legend_above(
    ax: Axes, handles: Sequence[Any], labels: Sequence[str], title: str, *, bold: bool = False
) -> None:
    """A legend with a title above the panel, flush left."""
    ax.legend(
        handles,
        labels,
        title=title,
        title_fontproperties={"size": 8, "weight": "bold" if bold else "normal"},
        loc="lower left",
        bbox_to_anchor=(0.0, 1.02),
        alignment="left",
    )


def number(value: float, digits: int = 2) -> str:
    """A number with a true minus sign, and without a sign if it rounds to 0."""
    return f"{value:.{digits}f}".replace("-", "−") if round(value, digits) else f"{0:.{digits}f}"


def rank_name(rank: float) -> str:
    """``∞``, ``512``, or a power of two if the rank has five digits."""
    if math.isinf(rank):
        return "∞"
    power = math.log2(rank)
    return f"$2^{{{power:.0f}}}$" if rank > 9999 and power.is_integer() else f"{rank:.7g}"


def rank_axis(ax: Axes, ranks: Sequence[float], inches: float) -> None:
    """A logarithmic axis with a tick at every rank of the study.

    On an axis ``inches`` long, as many ticks are labelled as fit.
    """
    ax.set_xscale("log", base=2)
    span = math.log(ranks[-1] / ranks[0]) or math.log(2)
    apart = TICK_INCHES * span / inches
    labelled: list[float] = []
    for rank in ranks:
        if not labelled or math.log(rank / labelled[-1]) >= apart:
            labelled.append(rank)
    ax.xaxis.set_major_locator(FixedLocator(labelled))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda rank, _: rank_name(rank)))
    ax.xaxis.set_minor_locator(FixedLocator([r for r in ranks if r not in labelled]))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(ranks[0] * math.exp(-0.06 * span), ranks[-1] * math.exp(0.06 * span))
    ax.set_xlabel("rank $r$")


def linear_axis(ax: Axes) -> None:
    """A linear y axis with about five round labels."""
    # The default locator reads the label size from the rcParams at every draw; this one does not.
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))


def log_axis(panels: Sequence[Axes]) -> None:
    """A logarithmic y axis, shared by ``panels``, with labels even below one decade."""
    for ax in panels:
        ax.set_yscale("log")
    axis = panels[0].yaxis
    low, high = panels[0].get_ylim()
    decades = math.log10(high / low)
    steps = (1, 2, 3, 5) if decades < 0.8 else (1, 3) if decades < 3 else (1,)
    axis.set_major_locator(LogLocator(base=10, subs=steps, numticks=20 if len(steps) > 1 else 7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _decimal(value)))
    axis.set_minor_locator(
        LogLocator(base=10, subs=range(2, 10), numticks=20) if decades < 6 else NullLocator()
    )
    axis.set_minor_formatter(NullFormatter())
    if decades < 1 / 3:  # too short for two labels at these steps: label it like a linear axis
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.set_minor_locator(NullLocator())


def _decimal(value: float) -> str:
    exponent = math.floor(math.log10(value) + 1e-9)
    if -3 <= exponent <= 3:
        return f"{value:.6g}"
    digits = round(value / 10**exponent, 6)
    power = rf"10^{{{exponent}}}"
    return f"${power}$" if digits == 1 else rf"${digits:g}\times {power}$"


def rank_legend(
    parent: Figure | SubFigure,
    panels: Any,
    rules: Sequence[Rule],
    ranks: Sequence[float],
    drawn: set[tuple[Rule, float]],
) -> Axes:
    """A legend beside ``panels``: a row per rank, lowest at the bottom, and a column per rule.

    ``drawn``: the (rule, rank) pairs with a curve; the other cells stay blank.
    """
    page = parent.get_figure(root=True)
    width = min(0.15 * len(rules), 0.45)
    height = ROW_INCHES * len(ranks)
    available = 0.8 * page.get_figheight() * parent.bbox.height / page.bbox.height
    ax, _ = matplotlib.colorbar.make_axes(
        list(np.ravel(panels)),
        location="right",
        fraction=width / (page.get_figwidth() - 1),
        shrink=min(0.95, height / available),
        aspect=height / width,
        pad=0.015,
    )
    for x, rule in enumerate(rules):
        for y, rank in enumerate(ranks):
            if (rule, rank) in drawn:
                colour = shade(rule, rank, ranks)
                ax.add_patch(
                    Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.6)
                )
    ax.set(xlim=(0, len(rules)), ylim=(0, len(ranks)), xticks=[])
    ax.set_yticks(np.arange(len(ranks)) + 0.5, [rank_name(r) for r in ranks])
    ax.tick_params(length=0, pad=2, left=False, labelleft=False, labelright=True)
    ax.spines[:].set_visible(False)
    ax.set_title("rank", fontsize=7, pad=3)
    ax.set_label("legend")
    return ax
