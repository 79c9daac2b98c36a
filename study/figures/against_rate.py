"""The best learning rate: the loss against the rate at each rank, and the exponent of the best rate
with rank against rho, with the predicted crossover.
"""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.analysis.losses import INSIDE
from study.analysis.rate_theory import rate_exponent
from study.analysis.rates import exponents_against_rho, rates_by_horizon
from study.figures import style
from study.figures.final_loss import LABEL, Sweep, draw_line, sweeps
from study.figures.selection import (
    Absent,
    Family,
    Rule,
    Tables,
    holding,
    most_varied,
    rules_of,
)

MOST_RULES = 5
MARGIN = 2.0
"""The factor by which the axis of rho extends beyond the data on either side."""


@style.paper()
def learning_rate_basins(tables: Tables) -> Figure:
    """Final held-out loss against the learning rate, one panel per rule and one line per rank.
    Large markers show the best learning rate of each rank.

    Candidates are the rates that all seeds of the rank were run at. An open marker is at an edge of
    them: the best rate may lie outside. Lines are means over seeds.
    """
    tried = [sweep for sweep in sweeps(tables) if len(sweep.rates) > 1]
    if not tried:
        raise Absent("a loss against the learning rate needs runs at two learning rates")
    shown, left_out = most_varied(tried, rules=MOST_RULES)
    columns = min(max(len(sweep.rules) for sweep in shown), MOST_RULES)
    page, grid = style.panels(shown, columns, ratio=0.33 * max(columns, 2), sharex=True)
    crosses = edges = False
    for panels, sweep in zip(grid, shown, strict=True):
        for ax, rule in style.each(panels, sweep.rules):
            for rank in style.ranks_to_draw(sweep.ranks):
                drawn = _draw_basin(ax, sweep, rule, rank)
                crosses, edges = crosses or drawn[0], edges or drawn[1]
            ax.set_xscale("log")
            style.log_ticks(ax.xaxis, (sweep.rates[0], sweep.rates[-1]))
            ax.set_xlabel("learning rate")
            style.heading(ax, rule, columns)
        panels[0].set_ylim(*sweep.y_range)
        style.y_axis(panels, *LABEL)
    seeds = max(sweep.cells["seed"].nunique() for sweep in shown)
    return style.finish(
        page,
        style.on_ranks(sweep.ranks for sweep in shown),
        f"Lines: mean over {seeds} seeds; bands: their range." if seeds > 1 else "",
        "Large: the best learning rate of each rank"
        + ("; open: at an edge of its rates." if edges else "."),
        "×: diverged, or loss above the panel." if crosses else "",
        left_out,
    )


def _draw_basin(ax: Axes, sweep: Sweep, rule: Rule, rank: float) -> tuple[bool, bool]:
    """The losses of one rank, with its best rate marked. Returns whether there is a cross, and
    whether the best rate is at an edge."""
    cells, (_, top), name = sweep.of(rule), sweep.y_range, style.rank_name(rank)
    colour, who = style.shade(rule, rank, sweep.ranks), f"{style.gid(rule)} r={name}"
    dashes = "dashed" if math.isinf(rank) else "solid"
    own = cells[cells["rank"] == rank]
    _, crosses = draw_line(ax, own, top, name, who, color=colour, linestyle=dashes)
    best, loss, at_edge = sweep.best(rule, rank)
    if not np.isfinite(best):
        return crosses, False
    edge = at_edge != INSIDE
    look = style.LARGE | {"color": colour, "marker": style.rule_look(rule.scaling).marker}
    if edge:
        look |= {"markerfacecolor": "white", "markeredgecolor": colour}
    ax.plot([best], [loss], gid=f"{'edge' if edge else 'best'} {who}", **look)
    return crosses, edge


@style.paper()
def rate_exponent_vs_rho(tables: Tables) -> Figure:
    """The exponent of the best learning rate with rank, against rho, the motion of A relative to
    its init at the best rate. Lines are predicted, from -(1 - p) to half of it.

    The dashed line keeps the descent of a step the same at every rank. The dotted line keeps the
    adapters' output the same, which bends at low rank. Bars are the 95 % interval over seeds, and
    the range of rho over ranks and seeds. Open markers are shorter runs: the same cells, read at an
    earlier step.
    """
    absent = (
        "an exponent of the best learning rate against rho needs rho of A, and learning rates "
        "swept at two ranks under a sign-like optimizer"
    )
    cells = tables.cells
    if cells.empty or cells["lr"].nunique() < 2 or "rho" not in tables.probes:
        raise Absent(absent)
    cells = cells.drop(columns=["lr", "alpha"], errors="ignore")
    shown, left_out = holding(cells, lambda family: _points(family, tables), absent)
    page, grid = style.panels(list(shown), 1, ratio=0.8, above=0.25 * len(shown))
    for [ax], (family, points) in zip(grid, shown.items(), strict=True):
        _draw_exponents(ax, family, points)
    every = pd.concat(shown.values())
    seeds, last = every["seeds"].max(), every["horizon"].max()
    *most, longest = [f"{step:.0f}" for step in sorted(set(every["horizon"]) - {last})] or [""]
    early = f"{', '.join(most)} or {longest}" if most else longest
    return style.finish(
        page,
        f"Vertical bars: 95 % intervals over {seeds:.0f} seeds." if seeds > 1 else "",
        "Horizontal bars: the range of ρ, on the training batch, over ranks and seeds.",
        "Predicted: from equal descents of a step (dashed) to equal outputs (dotted).",
        f"Open: after {early} steps instead of {last:.0f}." if early else "",
        left_out,
    )


def _points(family: Family, tables: Tables) -> pd.DataFrame:
    """The exponents of a setting with their rho and prediction, and the ``rule`` of each."""
    cells = tables.cells[tables.cells["cell_id"].isin(set(family.cells["cell_id"]))]
    points = exponents_against_rho(rates_by_horizon(cells, tables.metrics, tables.probes))
    if points.empty:
        return points
    points = points.dropna(subset=["exponent", "rho", "output_slope"])
    return points.assign(rule=rules_of(points))


def _draw_exponents(ax: Axes, family: Family, points: pd.DataFrame) -> None:
    """One setting. A shorter run has a smaller open marker, without bars."""
    low, high = points["rho_low"].min() / MARGIN, points["rho_high"].max() * MARGIN
    rho = np.geomspace(low, high, 200)
    last = points["horizon"].max()
    ax.plot(rho, 0 * rho, color=style.CONTEXT, linewidth=0.5, gid="zero")
    for rule in family.rules:
        own = points[points["rule"] == rule]
        if own.empty:
            continue
        look, gid = style.look(rule, family.rules), style.gid(rule)
        colour, m = look["color"], own[["descent_slope", "output_slope"]].mean()
        descent, output = (rate_exponent(float(each), rho) for each in m)
        style.band(ax, rho, descent, output, colour, f"band {gid}", alpha=0.15)
        ax.plot(rho, descent, color=colour, linestyle=style.DASHED, gid=f"curve {gid}")
        ax.plot(rho, output, color=colour, linestyle=":", linewidth=0.8, gid=f"output {gid}")
        style.label_end(ax, float(descent[-1]), f"${rule.letter}={rule.number:g}$", colour)
        for row in own.sort_values("horizon").to_dict("records"):
            x, y, is_last = row["rho"], row["exponent"], row["horizon"] == last
            if is_last:
                ax.hlines(y, row["rho_low"], row["rho_high"], color=colour, linewidth=0.6)
                if np.isfinite(row["ci_low"]):
                    ax.vlines(x, row["ci_low"], row["ci_high"], color=colour, linewidth=1.0)
            size, face = (4, colour) if is_last else (3, "white")
            marker = {**look, "markersize": size, "markerfacecolor": face, "linestyle": "none"}
            ax.plot([x], [y], zorder=size, gid=f"{'point' if is_last else 'early'} {gid}", **marker)
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    style.log_ticks(ax.xaxis, (low, high))
    ax.set_xlabel(r"$\rho = |\Delta A\,x| / |A_0\,x|$ at the best learning rate")
    style.y_axis([ax], "exponent of the best", "learning rate with rank")
