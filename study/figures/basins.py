"""The final held-out loss against the learning rate: where the best rate lies at each rank."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter

from study.analysis.losses import INSIDE, common_rates
from study.figures import style
from study.figures.final_loss import LABEL, Sweep, sweeps
from study.figures.selection import Absent, Rule, Tables, most_varied, rules_left_out

MOST_SWEEPS, MOST_RULES = 3, 5
ABOVE_START = 0.15
"""How far the y axis reaches above the loss before training, as a share of the best decrease."""


@style.paper()
def learning_rate_basins(tables: Tables) -> Figure:
    """Final held-out loss against the learning rate, one panel per rule and one line per rank.
    Large markers show the best learning rate of each rank, among those that all ranks and seeds of
    the rule were run at, or among the rank's own if every rank has its own.

    An open marker is at an edge of the grid: the best rate may lie outside. Lines are means over
    seeds.
    """
    tried = [sweep for sweep in sweeps(tables) if len(sweep.rates) > 1]
    if not tried:
        raise Absent("a loss against the learning rate needs runs at two learning rates")
    shown, left_out = most_varied(tried, MOST_SWEEPS, lambda sweep: sweep.family)
    columns = min(max(len(sweep.family.rules) for sweep in shown), MOST_RULES)
    page = style.page_of_rules(len(shown), columns, 0.66, len(shown))
    crosses = edges = False
    every = drawn = 0
    grid = style.in_rows(page, [sweep.family.label for sweep in shown], columns, sharex=True)
    for panels, sweep in zip(grid, shown, strict=True):
        rules, ranks = sweep.family.rules[:columns], style.ranks_to_draw(sweep.family.ranks)
        low, high = y_range(sweep)
        for ax, rule in zip(style.first(panels, len(rules)), rules, strict=True):
            for rank in ranks:
                crosses = _draw_basin(ax, sweep, rule, rank, high) or crosses
                edges = _draw_best(ax, sweep, rule, rank) or edges
            rate_axis(ax, sweep.rates)
            ax.set_xlabel("learning rate")
            style.heading(ax, rule, columns)
        style.y_label(panels[0], *LABEL)
        panels[0].set_ylim(low, high)
        style.linear_axis(panels[0])
        every, drawn = max((every, drawn), (len(sweep.family.ranks), len(ranks)))
    seeds = max(sweep.cells["seed"].nunique() for sweep in shown)
    best = "Large: the best learning rate of each rank"
    return style.finish(
        page,
        style.on_ranks(drawn, every),
        f"Lines: mean over {seeds} seeds; bands: their range." if seeds > 1 else "",
        f"{best}; open: at an edge of the grid." if edges else f"{best}.",
        "×: diverged, or loss above the panel." if crosses else "",
        _candidates(shown),
        left_out,
        rules_left_out([sweep.family for sweep in shown], MOST_RULES),
        shown=shown,
    )


def _candidates(shown: list[Sweep]) -> str:
    """Which rates the best one is among, if ranks of a rule were run at different rates."""
    rules = [(sweep, rule) for sweep in shown for rule in sweep.family.rules]
    rules = [(sweep, rule) for sweep, rule in rules if len(sweep.of(rule))]
    if any(sweep.has_own_rates(rule) for sweep, rule in rules):
        return "Each rank has rates of its own."
    uneven = (
        len(common_rates(sweep.of(rule))) < sweep.of(rule)["lr"].nunique() for sweep, rule in rules
    )
    return "The best is among the rates that all ranks were run at." if any(uneven) else ""


def y_range(sweep: Sweep) -> tuple[float, float]:
    """From the best run to a little above the loss before training."""
    best, worst = float(sweep.cells["loss"].min()), float(sweep.cells["loss"].max())
    high = worst
    if sweep.start > best:
        high = min(worst, sweep.start + ABOVE_START * (sweep.start - best))
    margin = 0.06 * ((high - best) or 0.1 * abs(best) or 1.0)
    return best - margin, high + margin


def _draw_basin(ax: Axes, sweep: Sweep, rule: Rule, rank: float, top: float) -> bool:
    """The losses of one rank. Return whether any is a cross: diverged, or above ``top``.

    gids: ``basin|band|cross <scaling> p=<p> r=<rank>``; ``label <rank>``.
    """
    means = sweep.means(rule, rank)
    if means.empty:
        return False
    colour = style.shade(rule, rank, sweep.family.ranks)
    who = f"{style.gid(rule)} r={style.rank_name(rank)}"
    drawn = means[means["whole"]]
    rates = drawn.index.to_numpy(float)
    look = style.keywords(
        color=colour, linestyle="dashed" if math.isinf(rank) else "solid", **style.DOTS
    )
    ax.plot(rates, drawn["mean"], gid=f"basin {who}", **look)
    if len(rates):
        y = min(float(drawn["mean"].iloc[-1]), top)
        style.label_end(ax, float(rates[-1]), y, style.rank_name(rank), colour)
    if sweep.cells["seed"].nunique() > 1:
        style.band(ax, rates, drawn["low"], drawn["high"], colour, f"band {who}", alpha=0.12)
    lost = means.index[~means["whole"] | (means["mean"] > top)].to_numpy(float)
    if len(lost):
        style.crosses(ax, lost, colour, f"cross {who}")
    return len(lost) > 0


def _draw_best(ax: Axes, sweep: Sweep, rule: Rule, rank: float) -> bool:
    """Mark the best learning rate of one rank. Return whether it lies at an edge of the grid.

    gids: ``best|edge <scaling> p=<p> r=<rank>``.
    """
    best, loss, at_edge = sweep.best(rule, rank)
    if not np.isfinite(best):
        return False
    edge = at_edge != INSIDE
    colour = style.shade(rule, rank, sweep.family.ranks)
    gid = f"{'edge' if edge else 'best'} {style.gid(rule)} r={style.rank_name(rank)}"
    marker = style.rule_look(rule.scaling).marker
    look = style.LARGE | style.keywords(color=colour, marker=marker, linestyle="none")
    if edge:
        look |= {"markerfacecolor": "white", "markeredgecolor": colour}
    ax.plot([best], [loss], gid=gid, **look)
    return edge


MOST_LABELLED = 12
"""Of more rates than these, the axis labels round numbers."""


def rate_axis(ax: Axes, rates: Sequence[float]) -> None:
    """A logarithmic axis that ends with the rates, with at most about five labels."""
    ax.set_xscale("log")
    labelled = _round(rates, (1,))
    many = len(rates) > MOST_LABELLED
    if len(labelled) < 2 and many:
        labelled = _round(rates, (1, 3))
    elif len(labelled) < 3 and not many:
        labelled = {rate: style.decimal(rate) for rate in rates}
    ticks = list(labelled)[:: math.ceil(len(labelled) / 5)]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FixedFormatter([labelled[tick] for tick in ticks]))
    ax.xaxis.set_minor_locator(FixedLocator(rates if len(rates) <= MOST_LABELLED else []))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _round(rates: Sequence[float], digits: Sequence[int]) -> dict[float, str]:
    """The labels of the numbers ``digit x 10^k`` within the rates, ascending."""
    found = {}
    for power in range(-12, 7):
        for digit in digits:
            number = digit * 10.0**power
            if rates[0] * 0.99 <= number <= rates[-1] * 1.01:
                factor = "" if digit == 1 else rf"{digit} \times "
                found[number] = f"${factor}10^{{{power}}}$"
    return found
