"""The exponent of the best learning rate with rank against rho, beside the predicted crossover."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from study.analysis.rate_theory import rate_exponent
from study.analysis.rates import exponents_against_rho, rates_by_horizon
from study.figures import style
from study.figures.selection import Absent, Family, Rule, Tables, families, most_varied

MOST_FAMILIES = 3
MARGIN = 2.0
"""The factor by which the axis of rho extends beyond the data on either side."""
MOST_TICKS = 6


@style.paper()
def rate_exponent_vs_rho(tables: Tables) -> Figure:
    """The exponent of the best learning rate with rank, against rho, the motion of A beside its
    init at the best rate. Curves are the predicted crossover, from -(1 - p) to half of it.

    At low rho a curve has the bend of the ranks measured. At high rho its band reaches from half of
    that to half of none. Bars are the 95 % interval over seeds, and the range of rho over ranks and
    seeds. Open markers are shorter runs: the same cells, read at an earlier step.
    """
    found = [
        (family, points) for family in _families(tables) if len(points := _points(family, tables))
    ]
    if not found:
        raise Absent(
            "an exponent of the best learning rate against rho needs rho of A, and learning rates "
            "swept at two ranks under a sign-like optimizer"
        )
    shown, left_out = most_varied(found, MOST_FAMILIES, lambda one: one[0])
    labels = [family.label for family, _ in shown]
    page, grid = style.panels(labels, 1, ratio=0.8, above=0.25 * len(shown))
    for [ax], (family, points) in zip(grid, shown, strict=True):
        _draw(ax, family, points)
    every = pd.concat([points for _, points in shown])
    seeds, last = every["seeds"].max(), every["horizon"].max()
    early = sorted(set(every["horizon"]) - {last})
    return style.finish(
        page,
        f"Vertical bars: 95 % intervals over {seeds:.0f} seeds." if seeds > 1 else "",
        "Horizontal bars: the range of ρ, on the training batch, over ranks and seeds.",
        "Bands: predicted, from the bend of the ranks measured to no bend in the motion of A.",
        f"Open: after {_listed(early)} steps instead of {last:.0f}." if early else "",
        left_out,
        shown=[family for family, _ in shown],
    )


def _families(tables: Tables) -> list[Family]:
    """The settings of the study, with all learning rates and alphas of each."""
    cells = tables.cells
    if cells.empty or cells["lr"].nunique() < 2 or "rho" not in tables.probes:
        return []
    return families(cells.drop(columns=["lr", "alpha"], errors="ignore"))


def _points(family: Family, tables: Tables) -> pd.DataFrame:
    """The exponents of a setting with their rho and prediction, and the ``rule`` of each."""
    cells = tables.cells[tables.cells["cell_id"].isin(set(family.cells["cell_id"]))]
    rates = rates_by_horizon(cells, tables.metrics, tables.probes)
    points = exponents_against_rho(rates)
    if points.empty:
        return points
    points = points.dropna(subset=["exponent", "rho", "move_slope"])
    rules = [
        Rule.of(str(s), p) for s, p in zip(points["scaling"], points["exponent_p"], strict=True)
    ]
    return points.assign(rule=pd.Series(rules, points.index, dtype=object))


def _listed(steps: list[int]) -> str:
    """``8``, ``8 or 16``, ``8, 16 or 32``."""
    *first, last = (f"{step:.0f}" for step in steps)
    return f"{', '.join(first)} or {last}" if first else last


def _draw(ax: Axes, family: Family, points: pd.DataFrame) -> None:
    """One setting. gids: ``curve|band|point|early <scaling> p=<p>``."""
    low, high = points["rho_low"].min() / MARGIN, points["rho_high"].max() * MARGIN
    rho = np.geomspace(low, high, 200)
    last = points["horizon"].max()
    ax.plot(rho, 0 * rho, color=style.CONTEXT, linewidth=0.5, gid="zero")
    for rule in family.rules:
        own = points[points["rule"] == rule]
        if own.empty:
            continue
        colour, gid = style.tint(rule, family.rules), style.gid(rule)
        m = float(own["move_slope"].mean())
        bent, straight = (rate_exponent(m, of_A, rho) for of_A in (m, 1 - rule.p))
        style.band(ax, rho, bent, straight, colour, f"band {gid}", alpha=0.15)
        middle = (bent + straight) / 2
        ax.plot(rho, middle, color=colour, linestyle=style.DASHED, gid=f"curve {gid}")
        style.label_end(ax, float(rho[-1]), float(middle[-1]), f"$p={rule.p:g}$", colour)
        for row in own.sort_values("horizon").to_dict("records"):
            _draw_point(ax, rule, family, row, is_last=row["horizon"] == last)
    _rho_axis(ax, low, high)
    style.y_label(ax, "exponent of the best", "learning rate with rank")
    style.linear_axis(ax)


def _draw_point(
    ax: Axes, rule: Rule, family: Family, row: Mapping[Any, Any], *, is_last: bool
) -> None:
    """A measured exponent; that of a shorter run is open, smaller, and without bars."""
    colour = style.tint(rule, family.rules)
    x, y = float(row["rho"]), float(row["exponent"])
    if is_last:
        ax.hlines(y, row["rho_low"], row["rho_high"], color=colour, linewidth=0.6)
        if math.isfinite(row["ci_low"]):
            ax.vlines(x, row["ci_low"], row["ci_high"], color=colour, linewidth=1.0)
    size = 4 if is_last else 3
    look = style.keywords(color=colour, markersize=size, zorder=size, linestyle="none")
    look |= {"marker": style.marker(rule, family.rules), "markeredgecolor": colour}
    look |= {"markerfacecolor": colour if is_last else "white"}
    ax.plot([x], [y], gid=f"{'point' if is_last else 'early'} {style.gid(rule)}", **look)


def _rho_axis(ax: Axes, low: float, high: float) -> None:
    """A logarithmic axis labelled at powers of ten."""
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    ticks = [10.0**power for power in powers]
    if len(ticks) < 3:
        ticks = [*style.LogTicks().tick_values(low, high)]
    ticks = ticks[:: math.ceil(len(ticks) / MOST_TICKS)]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FixedFormatter([style.decimal(tick) for tick in ticks]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(r"$\rho = |\Delta A\,x| / |A_0\,x|$ at the best learning rate")
