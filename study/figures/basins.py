"""The final held-out loss against the learning rate: where the best rate lies at each rank."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.analysis.losses import INSIDE, common_rates
from study.figures import style
from study.figures.final_loss import LABEL, Sweep, draw_line, sweeps
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
                drawn = _draw(ax, sweep, rule, rank)
                crosses, edges = crosses or drawn[0], edges or drawn[1]
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


def _draw(ax: Axes, sweep: Sweep, rule: Rule, rank: float) -> tuple[bool, bool]:
    """The losses of one rank, with a mark at its best learning rate.

    Returns whether there is a cross, for a run that diverged or lies above the panel, and whether
    the best rate is at an edge of the grid. gids: ``line|band|cross|best|edge <rule> r=<rank>``.
    """
    cells, (_, top), name = sweep.of(rule), sweep.y_range, style.rank_name(rank)
    colour, who = style.shade(rule, rank, sweep.ranks), f"{style.gid(rule)} r={name}"
    dashes = "dashed" if math.isinf(rank) else "solid"
    own = cells[cells["rank"] == rank]
    _, crosses = draw_line(ax, own, "lr", top, name, who, color=colour, linestyle=dashes)
    best, loss, at_edge = sweep.best(rule, rank)
    if not np.isfinite(best):
        return crosses, False
    edge = at_edge != INSIDE
    look = style.LARGE | {"color": colour, "marker": style.rule_look(rule.scaling).marker}
    if edge:
        look |= {"markerfacecolor": "white", "markeredgecolor": colour}
    ax.plot([best], [loss], gid=f"{'edge' if edge else 'best'} {who}", **look)
    return crosses, edge
