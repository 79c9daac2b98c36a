"""Does rank help, or only the step size? The final held-out loss against the learning rate, and against the rank."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from study.analysis.final_losses import fans
from study.figures import style
from study.figures.final_loss import Sweep, sweeps
from study.figures.selection import Absent, Rule, Tables, most_varied, rules_left_out

MOST_SWEEPS, MOST_RULES = 3, 5
AFRESH = 0.15
"""How far above the loss before the first step a basin is drawn, in parts of what the best run gained."""


# -------------------------------------------------------------------------------------------------------------- basins


@style.paper()
def learning_rate_basins(tables: Tables) -> Figure:
    """Final held-out loss against the learning rate, a panel per rule and a line per rank, the best rates marked.

    A best rate at an edge of the grid is an open marker: the true best may lie outside. Lines are means over seeds.
    """
    tried = [sweep for sweep in sweeps(tables) if len(sweep.rates) > 1]
    if not tried:
        raise Absent("a basin needs runs at two learning rates")
    shown, left_out = _most_varied(tried)
    columns = min(max(len(sweep.family.rules) for sweep in shown), MOST_RULES)
    page = style.figure(
        len(shown),
        columns,
        column=style.FULL if columns > 1 else style.HALF,
        ratio=0.66 * max(columns, 2) / 2,
        above=0.3 + (0.35 * len(shown) if len(shown) > 1 else 0),
    )
    crossed = edges = False
    for part, sweep in zip(style.rows(page, [s.family.label for s in shown]), shown, strict=True):
        panels = part.subplots(1, columns, sharex=True, sharey=True, squeeze=False)[0]
        rules = sweep.family.rules[:columns]
        low, high = _reach(sweep)
        for ax, rule in zip(panels, rules, strict=False):
            crosses, edge = _draw_basin(ax, sweep, rule, high)
            crossed, edges = crossed or crosses, edges or edge
            heading = style.title(rule, lines=1 if columns < 4 else 2)
            ax.set_title(heading, color=style.tint(rule, [rule]), linespacing=1.0)
        for ax in panels[len(rules) :]:
            ax.set_visible(False)
        style.y_label(panels[0], "final held-out loss", "(nats per token)")
        panels[0].set_ylim(low, high)
        style.linear_axis(panels[0])
        has = {(rule, rank) for rule in rules for rank in set(sweep.of(rule)["rank"])}
        style.ladder(part, panels, rules, sweep.family.ranks, has)
    seeds = max(len(set(sweep.cells["seed"])) for sweep in shown)
    return style.finish(
        page,
        f"Lines: mean over {seeds} seeds; bands: their range." if seeds > 1 else "",
        "Large: the best rate of each rank"
        + ("; open: at an edge of those tried." if edges else "."),
        "×: diverged, or ended above the panel." if crossed else "",
        left_out,
        rules_left_out([sweep.family for sweep in shown], MOST_RULES),
    )


def _reach(sweep: Sweep) -> tuple[float, float]:
    """The y range: from the best run to a little above the loss that training started from."""
    best, worst = float(sweep.cells["loss"].min()), float(sweep.cells["loss"].max())
    high = min(worst, sweep.start + AFRESH * (sweep.start - best)) if sweep.start > best else worst
    margin = 0.06 * ((high - best) or 0.1 * abs(best) or 1.0)
    return best - margin, high + margin


def _draw_basin(ax: Axes, sweep: Sweep, rule: Rule, top: float) -> tuple[bool, bool]:
    """One rule's basins; whether any run is a cross and any best an edge.

    gids: ``basin|band|best|edge|cross <scaling> p=<p> r=<rank>``.
    """
    crossed = edges = False
    for rank in sweep.family.ranks:
        means = sweep.means(rule, rank)
        if means.empty:
            continue
        colour, who = (
            style.shade(rule, rank, sweep.family.ranks),
            f"{style.gid(rule)} r={style.rank_name(rank)}",
        )
        drawn = means[means["whole"]]
        rates = drawn.index.to_numpy(float)
        dashed = "dashed" if math.isinf(rank) else "solid"
        ax.plot(
            rates,
            drawn["mean"],
            color=colour,
            linestyle=dashed,
            marker="o",
            markersize=1.8,
            gid=f"basin {who}",
        )
        if sweep.cells["seed"].nunique() > 1:
            fog: dict[str, Any] = {
                "color": colour,
                "alpha": 0.12,
                "linewidth": 0,
                "gid": f"band {who}",
            }
            ax.fill_between(rates, drawn["low"], drawn["high"], **fog)
        lost = means.index[~means["whole"] | (means["mean"] > top)].to_numpy(float)
        if len(lost):
            crossed = True
            at_top: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "gid": f"cross {who}"}
            ax.plot(
                lost,
                np.full(len(lost), 1.0),
                color=colour,
                **{**style.CROSS, **at_top, "markersize": 3.5},
            )
        best, edge = sweep.best(rule, rank)
        if np.isfinite(best):
            edges = edges or edge
            mark: dict[str, Any] = {"marker": style.LOOKS[rule.scaling].marker, "markersize": 5, "color": colour,
                                    "markerfacecolor": "white" if edge else colour,
                                    "markeredgecolor": colour if edge else style.INK,
                                    "markeredgewidth": 0.7, "linestyle": "none", "zorder": 4}  # fmt: skip
            ax.plot(
                [best],
                [float(drawn["mean"][best])],
                gid=f"{'edge' if edge else 'best'} {who}",
                **mark,
            )
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(base=10, numticks=7))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("learning rate")
    return crossed, edges


# ------------------------------------------------------------------------------------------------------------ the rank


@style.paper()
def loss_against_rank(tables: Tables) -> Figure:
    """Final held-out loss against the rank: at one learning rate, at each rank's best, and at a matched step size.

    The one rate is the best at the lowest rank, over all rules: what tuning a small adapter would have chosen. Matched:
    every rule at the rate that gives it rsLoRA's lazy step, ``lr gamma`` under a sign-like optimizer and ``lr gamma^2``
    under SGD, its loss linear in log lr between the rates that were run. Where that brings the rules together, it was
    the step size and not the rule.
    """
    every = [sweep for sweep in sweeps(tables) if len(sweep.family.finite_ranks) > 1]
    if not every:
        raise Absent("a loss against the rank needs runs at two ranks")
    shown, left_out = _most_varied(every)
    tables_of = [_panels(sweep) for sweep in shown]
    columns = max(len(panels) for panels in tables_of)
    entries = max(len(sweep.family.rules[:MOST_RULES]) for sweep in shown) + 2
    page = style.figure(
        len(shown),
        columns,
        column=style.FULL if columns > 1 else style.HALF,
        ratio=0.66 if columns < 3 else 0.9,
        above=0.3 + 0.14 * entries * len(shown),
    )
    inches = page.get_figwidth() / columns - 0.5
    edges = infinite = False
    for part, sweep, drawn in zip(
        style.rows(page, [s.family.label for s in shown]), shown, tables_of, strict=True
    ):
        panels = part.subplots(1, columns, sharey=True, squeeze=False)[0]
        for ax, (heading, points) in zip(panels, drawn.items(), strict=False):
            infinite = infinite or bool(np.isinf(points["rank"]).any())
            edges = edges or bool(points["edge"].any())
            _draw_losses(ax, sweep, points, heading, inches)
            ax.set_xlabel("rank $r$" + _cost(sweep, tables.probes))
        for ax in panels[len(drawn) :]:
            ax.set_visible(False)
        style.y_label(panels[0], "final held-out loss", "(nats per token)")
        style.linear_axis(panels[0])
    many = max(sweep.cells["seed"].nunique() for sweep in shown)
    return style.finish(
        page,
        f"Points: one per seed; lines: mean over {many} seeds."
        if many > 1
        else "Points: runs; there is one seed.",
        "Open: the best rate lies at an edge of those tried." if edges else "",
        "Dashed: infinite rank." if infinite else "",
        left_out,
        rules_left_out([sweep.family for sweep in shown], MOST_RULES),
    )


def _panels(sweep: Sweep) -> dict[str, pd.DataFrame]:
    """By heading: the points (rule, rank, seed, loss, edge) of a panel."""
    fixed = _fixed_rate(sweep)
    at_fixed = sweep.cells[sweep.cells["lr"] == fixed].assign(edge=False)
    found = {f"learning rate {_rate(fixed)}": at_fixed}
    if len(sweep.rates) > 1:
        best = []
        for rule in sweep.family.rules:
            for rank in sweep.family.ranks:
                rate, edge = sweep.best(rule, rank)
                cells = sweep.of(rule)
                best.append(
                    cells[(cells["rank"] == rank) & (cells["lr"] == rate)].assign(edge=edge)
                )
        found["each rank's best learning rate"] = pd.concat(best)
        # The rate at which most can be compared; where several do, the one with the least loss.
        tried = [(rate, _matched(sweep, rate)) for rate in sweep.rates]
        rate, matched = max(tried, key=lambda one: (len(one[1]), -one[1]["loss"].mean()))
        if len(matched):
            found[f"matched to rsLoRA's step at {_rate(rate)}"] = matched
    return {heading: points[np.isfinite(points["loss"])] for heading, points in found.items()}


def _fixed_rate(sweep: Sweep) -> float:
    """The rate with the least mean loss at the lowest rank, among those that all its rules have run whole."""
    lowest = sweep.cells[sweep.cells["rank"] == sweep.cells["rank"].min()]
    by = lowest.groupby("lr")
    whole = by["rule"].nunique() == lowest["rule"].nunique()
    mean = (
        by["loss"]
        .mean()
        .where(by["loss"].apply(lambda loss: bool(np.isfinite(loss).all())) & whole)
    )
    if mean.notna().any():
        return float(mean.index[mean.argmin()])
    return float(sweep.cells["lr"].mode().iloc[0])


def _matched(sweep: Sweep, fixed: float) -> pd.DataFrame:
    """Every rule's loss at the rate that gives it the step of p = 1/2 at ``fixed``, per finite rank and seed.

    Interpolated in log lr within the rates that the seed ran, never beyond them, and not across a diverged run. Only
    ranks at which two rules can be compared.
    """
    rows = []
    groups: Any = sweep.cells.groupby(["rule", "rank", "seed"])
    for (rule, rank, seed), cells in groups:
        if math.isinf(rank):
            continue
        # gamma = alpha r^-p: at equal alpha the ratio to p = 1/2 is r^(1/2 - p).
        rate = fixed * rank ** (sweep.steps_in_gamma * (rule.p - 0.5))
        cells = cells.sort_values("lr")
        lr, loss = np.log(cells["lr"].to_numpy(float)), cells["loss"].to_numpy(float)
        if lr[0] - 1e-9 <= math.log(rate) <= lr[-1] + 1e-9:
            value = float(np.interp(math.log(rate), lr, loss))  # NaN beside a diverged run
            rows.append({"rule": rule, "rank": rank, "seed": seed, "loss": value, "edge": False})
    points = pd.DataFrame(rows, columns=["rule", "rank", "seed", "loss", "edge"])
    points = points[np.isfinite(points["loss"].astype(float))]
    return points[points.groupby("rank")["rule"].transform("nunique") > 1]


def _draw_losses(ax: Axes, sweep: Sweep, points: pd.DataFrame, heading: str, inches: float) -> None:
    """One panel: gids ``points|line|edge|limit <scaling> p=<p>``."""
    handles: list[Any] = []
    labels: list[str] = []
    rules = sweep.family.rules
    for rule in rules[:MOST_RULES]:
        mine = points[points["rule"] == rule]
        finite = mine[np.isfinite(mine["rank"])].sort_values("rank", kind="stable")
        if mine.empty:
            continue
        colour, mark, who = style.tint(rule, rules), style.marker(rule, rules), style.gid(rule)
        mean = finite.groupby("rank")["loss"].mean()
        (line,) = ax.plot(mean.index, mean, color=colour, gid=f"line {who}", zorder=2)
        dots: dict[str, Any] = {
            "color": colour,
            "marker": mark,
            "linestyle": "none",
            "markeredgewidth": 0.8,
        }
        inner, outer = finite[~finite["edge"].astype(bool)], finite[finite["edge"].astype(bool)]
        ax.plot(inner["rank"], inner["loss"], gid=f"points {who}", zorder=3, **dots)
        if len(outer):
            ax.plot(
                outer["rank"],
                outer["loss"],
                gid=f"edge {who}",
                zorder=3,
                markerfacecolor="white",
                **dots,
            )
        handles.append((line, Line2D([], [], **dots)))
        labels.append(style.name(rule))
        limit = mine.loc[np.isinf(mine["rank"]), "loss"]
        if len(limit):
            ax.axhline(
                limit.mean(),
                color=colour,
                linestyle="dashed",
                linewidth=0.8,
                gid=f"limit {who}",
                zorder=1,
            )
    style.rank_axis(ax, sweep.family.finite_ranks, inches)
    above: dict[str, Any] = {
        "loc": "lower left",
        "bbox_to_anchor": (0.0, 1.02),
        "alignment": "left",
    }
    ax.legend(handles, labels, title=heading, title_fontsize=8, **above)


def _cost(sweep: Sweep, probes: pd.DataFrame) -> str:
    """What a unit of rank costs, which makes of the rank an axis of adapter FLOPs; nothing where it is not recorded."""
    of_cell = (
        sweep.cells["cell_id"].map(fans(probes)).dropna() if len(probes) else pd.Series(dtype=float)
    )
    return (
        f"\n{6 * of_cell.iloc[0] / 1e6:.2g} MFLOP per token and rank"
        if of_cell.nunique() == 1
        else ""
    )


def _rate(rate: float) -> str:
    return f"{rate:g}".replace("e-0", "e-")


def _most_varied(every: list[Sweep]) -> tuple[list[Sweep], str]:
    shown, left_out = most_varied([sweep.family for sweep in every], MOST_SWEEPS)
    return [sweep for sweep in every if any(sweep.family is family for family in shown)], left_out
