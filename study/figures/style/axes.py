"""Axes, numbers and legends: rank axes, and logarithmic axes of any length."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import (
    FixedLocator,
    Formatter,
    FuncFormatter,
    Locator,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from study.figures.style.looks import CROSS

TICK_INCHES = 0.3
"""Width of a four-digit tick label and a gap."""
FEWEST_TICKS, MOST_TICKS = 3, 6
"""Labelled ticks of a logarithmic axis."""


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
    """A logarithmic axis with a tick at every rank of the study, and at least three ticks.

    On an axis ``inches`` long, as many ticks are labelled as fit.
    """
    ax.set_xscale("log", base=2)
    span = math.log(ranks[-1] / ranks[0]) or math.log(2)
    ticks = _with_a_middle(ranks)
    apart = TICK_INCHES * span / inches
    labelled: list[float] = []
    for rank in ticks:
        if not labelled or math.log(rank / labelled[-1]) >= apart:
            labelled.append(rank)
    if ticks[-1] not in labelled and len(labelled) > FEWEST_TICKS:
        labelled[-1] = ticks[-1]  # the highest rank rather than the one before it
    ax.xaxis.set_major_locator(FixedLocator(labelled))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda rank, _: rank_name(rank)))
    ax.xaxis.set_minor_locator(FixedLocator([rank for rank in ranks if rank not in labelled]))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(ranks[0] * math.exp(-0.06 * span), ranks[-1] * math.exp(0.06 * span))
    ax.set_xlabel("rank $r$")


def _with_a_middle(ranks: Sequence[float]) -> list[float]:
    """``ranks``; if there are two, also the power of two or the integer that is halfway."""
    if len(ranks) != 2:
        return list(ranks)
    halfway = math.sqrt(ranks[0] * ranks[1])
    power = 2.0 ** round(math.log2(halfway))
    middle = power if ranks[0] < power < ranks[1] else float(round(halfway))
    return sorted({*ranks, middle})


def linear_axis(ax: Axes) -> None:
    """A linear y axis with about five round labels."""
    ax.yaxis.set_major_locator(_round_ticks())


def _round_ticks() -> MaxNLocator:
    """About five round numbers.

    Unlike matplotlib's default, it does not read the size of the labels from the rcParams at every
    draw. An axis needs a locator of its own.
    """
    return MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], min_n_ticks=FEWEST_TICKS)


class LogTicks(Locator):
    """Ticks of a logarithmic axis: powers of ten if three are in view, else more of each decade.

    An axis too short for three of these has the ticks of a linear one.
    """

    SUBS = ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7))
    """The multiples of a power of ten that are tried, in this order."""

    def __call__(self) -> Sequence[float]:
        assert self.axis is not None
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """The ticks between ``vmin`` and ``vmax``."""
        low, high = sorted((vmin, vmax))
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for subs in self.SUBS:
            ticks = [sub * 10.0**power for power in powers for sub in subs]
            ticks = [tick for tick in ticks if low <= tick <= high]
            if len(ticks) >= FEWEST_TICKS:
                return ticks[:: math.ceil(len(ticks) / MOST_TICKS)]
        return [tick for tick in _round_ticks().tick_values(low, high) if low <= tick <= high]


class Decimals(Formatter):
    """All labels of an axis as decimals or, if one would be long, all with powers of ten."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return decimal(x)

    def format_ticks(self, values: Iterable[float]) -> list[str]:
        """The labels of the ticks at ``values``."""
        values = list(values)
        return [decimal(value, powers=not all(map(_is_short, values))) for value in values]


def log_axis(panels: Sequence[Axes]) -> None:
    """A logarithmic y axis, shared by ``panels``, labelled at :class:`LogTicks`."""
    for ax in panels:
        ax.set_yscale("log")
    axis = panels[0].yaxis
    axis.set_major_locator(LogTicks())
    axis.set_major_formatter(Decimals())
    low, high = panels[0].get_ylim()
    decades = math.log10(high / low)
    axis.set_minor_locator(
        LogLocator(base=10, subs=range(2, 10), numticks=20) if decades < 6 else NullLocator()
    )
    axis.set_minor_formatter(NullFormatter())


def decimal(value: float, *, powers: bool | None = None) -> str:
    """``0.003``, or with ``powers`` ``3 × 10⁻³`` as a formula; by default the shorter one."""
    if not (powers if powers is not None else not _is_short(value)):
        return f"{value:.6g}"
    exponent = _exponent(value)
    digits = round(value / 10**exponent, 6)
    power = rf"10^{{{exponent}}}"
    return f"${power}$" if digits == 1 else rf"${digits:g}\times {power}$"


def _is_short(value: float) -> bool:
    return -3 <= _exponent(value) <= 3


def _exponent(value: float) -> int:
    return math.floor(math.log10(value) + 1e-9)


def crosses(ax: Axes, x: np.ndarray, colour: Any, gid: str) -> None:
    """Crosses on the upper edge of a panel: runs that diverged, or whose values lie above it."""
    ax.plot(
        x,
        np.full(len(x), 1.0),
        color=colour,
        transform=ax.get_xaxis_transform(),
        gid=gid,
        **{**CROSS, "markersize": 3.5},
    )
