"""The final held-out loss against the rank: does rank help, or only the size of the steps?"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.analysis import compared_losses
from study.analysis.losses import INSIDE, fans, fixed_rate
from study.figures import style
from study.figures.final_loss import LABEL, Sweep, sweeps
from study.figures.selection import Absent, Rule, Tables, most_varied, rules_of
from study.vocabulary.scaling import RULES

MOST_RULES = 5
FARTHEST_START = 3.0
"""The loss before training is drawn if the y axis grows to at most this multiple for it."""


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
    every = [sweep for sweep in sweeps(tables, "lr") if len(sweep.finite_ranks) > 1]
    if not every:
        raise Absent("a loss against the rank needs runs at two ranks")
    shown, left_out = most_varied(every, rules=MOST_RULES)
    points_of = [_panels(sweep, tables) for sweep in shown]
    columns = max(map(len, points_of))
    ratio, above = 0.66 if columns < 3 else 0.9, 0.5 + 0.45 * len(shown)
    page, grid = style.panels(shown, columns, ratio=ratio, above=above)
    inches = page.get_figwidth() / columns - 0.5
    beside = sorted({rule for sweep in shown for rule in sweep.rules[:MOST_RULES]})
    for panels, sweep, drawn in zip(grid, shown, points_of, strict=True):
        losses = pd.concat(drawn.values())["loss"]
        low, high = losses.min(), losses.max()
        is_near = max(high, sweep.start) - min(low, sweep.start) <= FARTHEST_START * (high - low)
        cost = sweep.cells["cell_id"].map(fans(tables.probes)).dropna().unique()
        mflop = [f"\n{6 * one / 1e6:.2g} MFLOP per token and unit of rank" for one in cost]
        for ax, (heading, points) in style.each(panels, drawn.items()):
            if is_near:
                _draw_base(ax, sweep.start)
            for rule in sweep.rules[:MOST_RULES]:
                _draw_rule(ax, rule, beside, points[points["rule"] == rule])
            style.rank_axis(ax, sweep.finite_ranks, inches)
            ax.set_title(heading, loc="left")
            ax.set_xlabel("rank $r$" + (mflop[0] if len(mflop) == 1 else ""))
        style.y_axis(panels, *LABEL)
    looks = {style.name(rule): style.look(rule, beside) for rule in beside}
    style.legend(page, looks, columns=min(len(beside), 2 * columns))
    every_point = pd.concat([points for drawn in points_of for points in drawn.values()])
    seeds = max(sweep.cells["seed"].nunique() for sweep in shown)
    starts = sorted({f"{sweep.start:.2f}" for sweep in shown if np.isfinite(sweep.start)})
    base = " to ".join(dict.fromkeys([*starts[:1], *starts[-1:]]))
    return style.finish(
        page,
        f"Points: one per seed; lines: mean over {seeds} seeds."
        if seeds > 1
        else "Points: runs (one seed).",
        "Open: the best rate is at an edge of the grid." if every_point["edge"].any() else "",
        f"Base: the loss before training, {base}." if base else "",
        "Dashed: infinite rank." if np.isinf(every_point["rank"]).any() else "",
        left_out,
    )


def _panels(sweep: Sweep, tables: Tables) -> dict[str, pd.DataFrame]:
    """By heading: the points (rule, rank, loss, edge) of a panel."""
    fixed = fixed_rate(sweep.cells)
    at_fixed = sweep.cells[sweep.cells["lr"] == fixed].assign(edge=False)
    found = {f"learning rate {fixed:g}": at_fixed}
    if len(sweep.rates) > 1:
        best = []
        groups: Any = sweep.cells.groupby(["rule", "rank"])
        for (rule, rank), cells in groups:
            tried = sweep.best(rule, rank, shared=True)
            best.append(cells[cells["lr"] == tried.lr].assign(edge=tried.edge != INSIDE))
        found["best learning rate of each rank"] = pd.concat(best)
        own = tables.cells[tables.cells["cell_id"].isin(set(sweep.cells["cell_id"]))]
        compared = compared_losses(own, tables.metrics)
        compared = compared[(compared["how"] == "matched") & np.isfinite(compared["loss"])]
        compared = compared.assign(rule=rules_of(compared), edge=False)
        # The rate at which most points can be matched; among equals, the one with the lowest loss.
        at_rate = [matched for _, matched in compared.groupby("lr")]
        if at_rate:
            matched = max(at_rate, key=lambda one: (len(one), -one["loss"].mean()))
            rate = matched["lr"].iloc[0]
            found[f"steps matched to {RULES['rslora'].label} at {rate:g}"] = matched
    return {heading: points[np.isfinite(points["loss"])] for heading, points in found.items()}


def _draw_base(ax: Axes, start: float) -> None:
    """The loss before training. gid: ``base``."""
    look: dict[str, Any] = {"color": style.FAINT, "linestyle": style.DASHED, "zorder": 1}
    ax.axhline(start, linewidth=0.8, gid="base", **look)
    look = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "top"}
    ax.annotate("base", (0, start), (2, -2), color=style.FAINT, fontsize=7, **look)


def _draw_rule(ax: Axes, rule: Rule, beside: list[Rule], points: pd.DataFrame) -> None:
    """The points and the mean of one rule; infinite rank is a horizontal line.

    gids: ``points|line|edge|limit <scaling> p=<p>``.
    """
    look, who = style.look(rule, beside), style.gid(rule)
    colour = look["color"]
    finite = points[np.isfinite(points["rank"])].sort_values("rank", kind="stable")
    if finite.empty:
        return
    mean = finite.groupby("rank")["loss"].mean()
    ax.plot(mean.index, mean, color=colour, gid=f"line {who}", zorder=2)
    hollow = style.HOLLOW | look | {"zorder": 3}
    at_edge = finite["edge"].astype(bool)
    inner, outer = finite[~at_edge], finite[at_edge]
    solid = hollow | {"markerfacecolor": colour}
    ax.plot(inner["rank"], inner["loss"], gid=f"points {who}", **solid)
    if len(outer):
        ax.plot(outer["rank"], outer["loss"], gid=f"edge {who}", **hollow)
    limit = points.loc[np.isinf(points["rank"]), "loss"]
    if len(limit):
        dashed = {"color": colour, "linestyle": "dashed", "linewidth": 0.8, "zorder": 1}
        ax.axhline(limit.mean(), gid=f"limit {who}", **dashed)
