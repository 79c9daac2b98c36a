"""The final held-out loss against the rank: does rank help, or only the size of the steps?"""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.analysis.losses import INSIDE, fans, fixed_rate
from study.figures import style
from study.figures.final_loss import LABEL, Sweep, sweeps
from study.figures.selection import Absent, Rule, Tables, most_varied, rules_left_out
from study.vocabulary.scaling import RULES

MOST_SWEEPS, MOST_RULES = 3, 5
FARTHEST_START = 2.0
"""The loss before training is drawn if the y axis grows by at most this factor for it."""
REFERENCE = RULES["rslora"]
"""The rule whose steps the others are matched to."""


@style.paper()
def loss_against_rank(tables: Tables) -> Figure:
    """Final held-out loss against the rank: at one learning rate, at the best learning rate of each
    rank, and at matched step size.

    The one learning rate is the best at the lowest rank, over all rules: the one that tuning a
    small adapter would choose. Matched: every rule has the learning rate at which its lazy step is
    that of rsLoRA, with equal ``lr gamma`` under a sign-like optimizer and ``lr gamma^2`` under
    SGD. Its loss is interpolated linearly in log lr. If the rules then agree, they differed by step
    size alone.
    """
    every = [sweep for sweep in sweeps(tables) if len(sweep.family.finite_ranks) > 1]
    if not every:
        raise Absent("a loss against the rank needs runs at two ranks")
    shown, left_out = most_varied(every, MOST_SWEEPS, lambda sweep: sweep.family)
    points_of = [_panels(sweep) for sweep in shown]
    columns = max(len(panels) for panels in points_of)
    labels, ratio = [sweep.family.label for sweep in shown], 0.66 if columns < 3 else 0.9
    page, grid = style.panels(labels, columns, ratio=ratio, above=0.5 + 0.45 * len(shown))
    inches = page.get_figwidth() / columns - 0.5
    beside = sorted({rule for sweep in shown for rule in sweep.family.rules[:MOST_RULES]})
    for panels, sweep, drawn in zip(grid, shown, points_of, strict=True):
        rules = sweep.family.rules[:MOST_RULES]
        start = sweep.start if _is_near(sweep.start, drawn) else np.nan
        for ax, (heading, points) in zip(
            style.first(panels, len(drawn)), drawn.items(), strict=True
        ):
            _draw(ax, points, start, rules, beside)
            style.rank_axis(ax, sweep.family.finite_ranks, inches)
            ax.set_title(heading, loc="left")
            ax.set_xlabel("rank $r$" + _cost(sweep, tables.probes))
        style.y_label(panels[0], *LABEL)
        style.linear_axis(panels[0])
    page.legend(
        [_handle(page.axes[0], rule, beside) for rule in beside],
        [style.name(rule) for rule in beside],
        loc="outside upper right",
        ncols=min(len(beside), 2 * columns),
    )
    all_points = pd.concat([points for drawn in points_of for points in drawn.values()])
    seeds = max(sweep.cells["seed"].nunique() for sweep in shown)
    return style.finish(
        page,
        f"Points: one per seed; lines: mean over {seeds} seeds."
        if seeds > 1
        else "Points: runs (one seed).",
        "Open: the best rate is at an edge of the grid." if all_points["edge"].any() else "",
        _on_start([sweep.start for sweep in shown]),
        "Dashed: infinite rank." if np.isinf(all_points["rank"]).any() else "",
        left_out,
        rules_left_out([sweep.family for sweep in shown], MOST_RULES),
        shown=shown,
    )


def _on_start(losses: list[float]) -> str:
    """A sentence on the loss before training; empty if no study evaluated it."""
    known = sorted({f"{loss:.2f}" for loss in losses if np.isfinite(loss)})
    if not known:
        return ""
    return f"Base: the loss before training, {' to '.join(dict.fromkeys([known[0], known[-1]]))}."


def _panels(sweep: Sweep) -> dict[str, pd.DataFrame]:
    """By heading: the points (rule, rank, seed, loss, edge) of a panel."""
    fixed = fixed_rate(sweep.cells)
    at_fixed = sweep.cells[sweep.cells["lr"] == fixed].assign(edge=False)
    found = {f"learning rate {_rate(fixed)}": at_fixed}
    if len(sweep.rates) > 1:
        found["best learning rate of each rank"] = _at_best_rates(sweep)
        # The rate at which most points can be matched; among equals, the one with the lowest loss.
        tried = [(rate, _matched(sweep, rate)) for rate in sweep.rates]
        rate, matched = max(tried, key=lambda one: (len(one[1]), -one[1]["loss"].mean()))
        if len(matched):
            found[f"steps matched to {REFERENCE.label} at {_rate(rate)}"] = matched
    return {heading: points[np.isfinite(points["loss"])] for heading, points in found.items()}


def _at_best_rates(sweep: Sweep) -> pd.DataFrame:
    best = []
    for rule in sweep.family.rules:
        cells = sweep.of(rule)
        for rank in sweep.family.ranks:
            tried = sweep.best(rule, rank)
            here = cells[(cells["rank"] == rank) & (cells["lr"] == tried.lr)]
            best.append(here.assign(edge=tried.edge != INSIDE))
    return pd.concat(best)


def _matched(sweep: Sweep, fixed: float) -> pd.DataFrame:
    """The loss of every rule, finite rank and seed at the step size of the reference at ``fixed``.

    Interpolated in log lr within the rates that the seed ran: never beyond them, nor next to a
    diverged run. Only ranks at which two rules can be compared.
    """
    assert REFERENCE.p is not None
    rows = []
    groups: Any = sweep.cells.groupby(["rule", "rank", "seed"])
    for (rule, rank, seed), cells in groups:
        if math.isinf(rank):
            continue
        # gamma = alpha r^-p: at equal alpha its ratio to the reference is r^(reference p - p).
        rate = fixed * rank ** (sweep.power_of_gamma * (rule.p - REFERENCE.p))
        cells = cells.sort_values("lr")
        lr, loss = np.log(cells["lr"].to_numpy(float)), cells["loss"].to_numpy(float)
        if lr[0] - 1e-9 <= math.log(rate) <= lr[-1] + 1e-9:
            value = float(np.interp(math.log(rate), lr, loss))  # NaN next to a diverged run
            rows.append({"rule": rule, "rank": rank, "seed": seed, "loss": value, "edge": False})
    points = pd.DataFrame(rows, columns=["rule", "rank", "seed", "loss", "edge"])
    points = points[np.isfinite(points["loss"].astype(float))]
    return points[points.groupby("rank")["rule"].transform("nunique") > 1]


def _is_near(start: float, drawn: dict[str, pd.DataFrame]) -> bool:
    """Whether the loss before training is so near that a line for it leaves room for the others."""
    loss = pd.concat(drawn.values())["loss"]
    low, high = loss.min(), loss.max()
    return bool(max(high, start) - min(low, start) <= (1 + FARTHEST_START) * (high - low))


def _draw(
    ax: Axes, points: pd.DataFrame, start: float, rules: list[Rule], beside: list[Rule]
) -> None:
    """One panel, with the ``rules`` of its setting; ``beside``: those of the figure.

    ``start``: the loss of the base, NaN if it is not drawn. gid: ``base``.
    """
    if np.isfinite(start):
        look = style.keywords(color=style.FAINT, linewidth=0.8, linestyle=style.DASHED, zorder=1)
        ax.axhline(start, gid="base", **look)
        place = style.keywords(xycoords=("axes fraction", "data"), textcoords="offset points")
        ax.annotate("base", (0, start), (2, -2), va="top", color=style.FAINT, fontsize=7, **place)
    for rule in rules:
        mine = points[points["rule"] == rule]
        if len(mine):
            _draw_rule(ax, rule, beside, mine)


def _draw_rule(ax: Axes, rule: Rule, beside: list[Rule], points: pd.DataFrame) -> None:
    """The points and the mean of one rule; infinite rank is a horizontal line.

    gids: ``points|line|edge|limit <scaling> p=<p>``.
    """
    colour, who = style.tint(rule, beside), style.gid(rule)
    finite = points[np.isfinite(points["rank"])].sort_values("rank", kind="stable")
    mean = finite.groupby("rank")["loss"].mean()
    ax.plot(mean.index, mean, color=colour, gid=f"line {who}", zorder=2)
    hollow = style.keywords(
        color=colour, marker=style.marker(rule, beside), zorder=3, **style.HOLLOW
    )
    at_edge = finite["edge"].astype(bool)
    inner, outer = finite[~at_edge], finite[at_edge]
    solid = hollow | {"markerfacecolor": colour}
    ax.plot(inner["rank"], inner["loss"], gid=f"points {who}", **solid)
    if len(outer):
        ax.plot(outer["rank"], outer["loss"], gid=f"edge {who}", **hollow)
    limit = points.loc[np.isinf(points["rank"]), "loss"]
    if len(limit):
        look = style.keywords(color=colour, linestyle="dashed", linewidth=0.8, zorder=1)
        ax.axhline(limit.mean(), gid=f"limit {who}", **look)


def _handle(ax: Axes, rule: Rule, beside: list[Rule]) -> Any:
    """The entry of a rule in the legend."""
    look = style.keywords(color=style.tint(rule, beside), marker=style.marker(rule, beside))
    return ax.plot([], [], **look)[0]


def _cost(sweep: Sweep, probes: pd.DataFrame) -> str:
    """What a unit of rank costs, for a second line of the axis label; empty if not recorded."""
    if probes.empty:
        return ""
    of_cell = sweep.cells["cell_id"].map(fans(probes)).dropna()
    if of_cell.nunique() != 1:
        return ""
    return f"\n{6 * of_cell.iloc[0] / 1e6:.2g} MFLOP per token and unit of rank"


def _rate(rate: float) -> str:
    return f"{rate:g}".replace("e-0", "e-")
