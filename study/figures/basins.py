"""The final held-out loss against the learning rate: where the best rate lies at each rank."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.analysis.losses import INSIDE, common_rates
from study.figures import style
from study.figures.final_loss import LABEL, Sweep, over_seeds, sweeps
from study.figures.selection import Absent, Rule, Tables, most_varied

MOST_RULES = 5
MOST_TICKS = 12
"""Of more rates than these, not every one has a tick."""


@style.paper()
def learning_rate_basins(tables: Tables) -> Figure:
    """Final held-out loss against the learning rate, one panel per rule and one line per rank.
    Large markers show the best learning rate of each rank, among those that all ranks and seeds of
    the rule were run at, or among the rank's own if every rank has its own.

    An open marker is at an edge of the grid: the best rate may lie outside. Lines are means over
    seeds.
    """
    tried = [sweep for sweep in sweeps(tables, "lr") if len(sweep.rates) > 1]
    if not tried:
        raise Absent("a loss against the learning rate needs runs at two learning rates")
    shown, left_out = most_varied(tried, rules=MOST_RULES)
    columns = min(max(len(sweep.rules) for sweep in shown), MOST_RULES)
    page, grid = style.panels(shown, columns, ratio=0.33 * max(columns, 2), sharex=True)
    crosses = edges = uneven = own_rates = False
    for panels, sweep in zip(grid, shown, strict=True):
        for ax, rule in style.each(panels, sweep.rules):
            for rank in style.ranks_to_draw(sweep.ranks):
                crosses = _draw_basin(ax, sweep, rule, rank) or crosses
                edges = _draw_best(ax, sweep, rule, rank) or edges
            rates = sweep.rates
            ax.set_xscale("log")
            minor = rates if len(rates) <= MOST_TICKS else []
            style.log_ticks(ax.xaxis, (rates[0], rates[-1]), minor)
            ax.set_xlabel("learning rate")
            style.heading(ax, rule, columns)
            own_rates = own_rates or sweep.has_own_rates(rule)
            runs = sweep.of(rule)
            uneven = uneven or len(common_rates(runs)) < runs["lr"].nunique()
        panels[0].set_ylim(*sweep.y_range)
        style.y_axis(panels, *LABEL)
    seeds = max(sweep.cells["seed"].nunique() for sweep in shown)
    of_all = "The best is among the rates that all ranks were run at." if uneven else ""
    return style.finish(
        page,
        style.on_ranks(sweep.ranks for sweep in shown),
        f"Lines: mean over {seeds} seeds; bands: their range." if seeds > 1 else "",
        "Large: the best learning rate of each rank"
        + ("; open: at an edge of the grid." if edges else "."),
        "×: diverged, or loss above the panel." if crosses else "",
        "Each rank has rates of its own." if own_rates else of_all,
        left_out,
    )


def _draw_basin(ax: Axes, sweep: Sweep, rule: Rule, rank: float) -> bool:
    """The losses of one rank. Return whether any is a cross: diverged, or above the panel.

    gids: ``basin|band|cross <scaling> p=<p> r=<rank>``; ``label <rank>``.
    """
    cells, (_, top) = sweep.of(rule), sweep.y_range
    drawn, lost = over_seeds(cells[cells["rank"] == rank], "lr", top)
    colour = style.shade(rule, rank, sweep.ranks)
    who = f"{style.gid(rule)} r={style.rank_name(rank)}"
    rates = drawn.index.to_numpy(float)
    dashes = "dashed" if math.isinf(rank) else "solid"
    ax.plot(rates, drawn["mean"], color=colour, linestyle=dashes, gid=f"basin {who}", **style.DOTS)
    if len(rates):
        y = min(float(drawn["mean"].iloc[-1]), top)
        style.label_end(ax, float(rates[-1]), y, style.rank_name(rank), colour)
    if sweep.cells["seed"].nunique() > 1:
        style.band(ax, rates, drawn["min"], drawn["max"], colour, f"band {who}", alpha=0.12)
    return style.crosses(ax, lost, colour, f"cross {who}")


def _draw_best(ax: Axes, sweep: Sweep, rule: Rule, rank: float) -> bool:
    """Mark the best learning rate of one rank. Return whether it lies at an edge of the grid.

    gids: ``best|edge <scaling> p=<p> r=<rank>``.
    """
    best, loss, at_edge = sweep.best(rule, rank)
    if not np.isfinite(best):
        return False
    edge, colour = at_edge != INSIDE, style.shade(rule, rank, sweep.ranks)
    look = style.LARGE | {"color": colour, "marker": style.rule_look(rule.scaling).marker}
    if edge:
        look |= {"markerfacecolor": "white", "markeredgecolor": colour}
    kind = "edge" if edge else "best"
    ax.plot([best], [loss], gid=f"{kind} {style.gid(rule)} r={style.rank_name(rank)}", **look)
    return edge
