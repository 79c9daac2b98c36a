"""The best learning rate: the loss against the rate at each rank, and the exponent of the best rate
with rank against rho, with the predicted crossover.
"""

import math
import re
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.analysis.losses import INSIDE
from study.analysis.rate_theory import rate_exponent
from study.analysis.rates import best_rates, exponents_against_rho, rates_by_horizon
from study.analysis.wording import settings
from study.figures import style
from study.figures.captions import span
from study.figures.final_loss import LABEL, Sweep, sweeps
from study.figures.selection import Absent, DrawnRule, Family, Tables, holding, rules_of

MOST_RULES, MOST_SETTINGS = 5, 6
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")
MARGIN = 2.0
"""The factor by which the axis of rho extends beyond the data on either side."""


@style.paper()
def learning_rate_basins(tables: Tables) -> Figure:
    """Final held-out loss against the learning rate, one panel per rule and one line per rank, in
    the setting of the longest runs, which the answer is about; of several, that with most runs. The
    marks at the bottom are the best learning rates, one per rank.

    The best rate is that of the table: the minimum of a parabola in log lr around the best of the
    rates that all seeds of the rank were run at, as a geometric mean over seeds. An open mark is at
    an edge of the rates for some seed: the best one may lie outside. Lines are means over seeds.
    """
    found = _settings(tables.cells, tables)
    return _basins(tables, tables.cells, _rows(found[:1]), len(found))


@style.paper()
def learning_rate_basins_by_setting(tables: Tables) -> Figure:
    """Final held-out loss against the learning rate, a row of panels per setting and one line per
    rank. The marks at the bottom are the best learning rates, one per rank."""
    found = _settings(tables.cells, tables)
    if len(found) < 2:
        raise Absent("basins by setting need two settings with runs at two learning rates")
    numbers = {one: list(map(float, NUMBER.findall(one.label))) for one in found[:MOST_SETTINGS]}
    return _basins(
        tables, tables.cells, _rows(sorted(numbers, key=numbers.__getitem__)), len(found)
    )


@style.paper()
def loss_against_alpha(tables: Tables) -> Figure:
    """Final held-out loss against alpha times the learning rate, one panel per learning rate and
    one line per rank. The marks at the bottom are the best products, one per rank.

    If the panels agree, only the product matters. Lines are means over seeds.
    """
    cells = tables.cells
    if cells["alpha"].nunique() <= cells["lr"].nunique():
        raise Absent("a loss against alpha needs runs at more alphas than learning rates")
    products = cells.assign(rate=cells["lr"], lr=cells["alpha"] * cells["lr"], alpha=1.0)
    found = _settings(products, tables)[:MOST_RULES]
    rates = {one: one.cells["rate"].iloc[0] for one in found}
    found.sort(key=rates.__getitem__)
    row = [(one, one.rules[0], f"learning rate {rates[one]:g}") for one in found]
    return _basins(tables, products, [row], 1, "α × learning rate")


Panel = tuple[Sweep, DrawnRule, str]
"""A setting, the rule whose runs are drawn, and the heading."""


def _settings(cells: pd.DataFrame, tables: Tables) -> list[Sweep]:
    """The settings with several learning rates, those of the longest runs first; among equals that
    with most runs, then that of the lowest loss. Rules whose alphas differ are in one setting,
    unless a rule has several of them.
    """
    for apart in (["lr", "alpha"], ["lr"]):
        found = [one for one in sweeps(tables, cells, apart) if len(one.rates) > 1]
        if all((one.cells.groupby("rule")["alpha"].nunique() == 1).all() for one in found):
            break
    if not found:
        raise Absent("a loss against the learning rate needs runs at two learning rates")
    return sorted(found, key=_first)


def _first(one: Sweep) -> tuple[float, int, float]:
    """What orders settings: steps, runs, and loss."""
    cells = one.cells
    steps = cells["steps"].max() if "steps" in cells else 0
    return -steps, -len(cells), cells["loss"].min()


def _rows(shown: list[Sweep]) -> list[list[Panel]]:
    """A row of panels per setting. Their headings say alpha if it differs between rules."""
    rows = []
    for sweep in shown:
        alphas = dict(zip(sweep.cells["rule"], sweep.cells["alpha"], strict=True))
        heads = {rule: style.title(rule) for rule in sweep.rules[:MOST_RULES]}
        if len(set(alphas.values())) > 1:
            heads = {rule: f"{style.title(rule, 2)}, α = {alphas[rule]:,.4g}" for rule in heads}
        rows.append([(sweep, rule, head) for rule, head in heads.items()])
    return rows


def _basins(
    tables: Tables,
    cells: pd.DataFrame,
    rows: list[list[Panel]],
    settings_: int,
    over: str = "learning rate",
) -> Figure:
    """Rows of panels, each with its y axis. ``cells`` have ``over`` as ``lr``. ``settings_``: how
    many settings there are."""
    columns, shown = max(map(len, rows)), [sweep for row in rows for sweep, *_ in row]
    labels = [row[0][0].label if over == "learning rate" else "" for row in rows]
    size: dict[str, Any] = {"ratio": 0.33 * max(columns, 2), "labels": labels, "sharex": True}
    page, grid = style.panels([row[0][0] for row in rows], columns, **size)
    ids = set(pd.concat([sweep.cells["cell_id"] for sweep in shown]))
    page.set_label(settings(tables.cells[tables.cells["cell_id"].isin(ids)]))
    marks: set[str] = set()
    most = max(len(style.ranks_to_draw(sweep.ranks)) for sweep in shown)
    for panels, row in zip(grid, rows, strict=True):
        rates = sorted({rate for sweep, *_ in row for rate in sweep.rates_in_view})
        low, high = zip(*(sweep.y_range for sweep, *_ in row), strict=True)
        for ax, (sweep, rule, heading) in style.each(panels, row):
            best = _best(sweep, rule, tables, cells)
            for row_, rank in enumerate(style.ranks_to_draw(sweep.ranks)):
                marks |= _draw_basin(ax, sweep, rule, rank, max(high), best, row_)
            style.rate_axis(ax, rates, page.get_figwidth() / columns - 0.6)
            ax.set_xlabel(over)
            ax.set_title(heading, color=style.look(rule, [rule])["color"])
        panels[0].set_ylim(style.with_rows(min(low), max(high), most))
        style.y_axis(panels, *LABEL)
    drawn = [sweep.of(rule).groupby("rank") for row in rows for sweep, rule, _ in row]
    seeds = {count for ranks in drawn for count in ranks["seed"].nunique()}
    return style.finish(
        page,
        style.on_ranks(sweep.ranks for sweep in shown),
        f"Lines: mean over {span(seeds)} seeds; bands: their range." if max(seeds) > 1 else "",
        "◆ at the bottom: the best of each rank, the minimum of a parabola"
        + ("; open: at an edge of the values tried for some seed." if "edge" in marks else "."),
        "×: a seed diverged." if "cross" in marks else "",
        f"{len(rows)} of {settings_} settings drawn." if len(rows) < settings_ else "",
    )


def _best(sweep: Sweep, rule: DrawnRule, tables: Tables, cells: pd.DataFrame) -> pd.DataFrame:
    """By rank, as the report's table: the best rate ``lr``, and ``edge``: whether it is at an edge
    of the rates for some seed."""
    own = cells[cells["cell_id"].isin(set(sweep.of(rule)["cell_id"]))]
    found = best_rates(own, tables.metrics, tables.probes.iloc[:0])
    if found.empty:
        return found
    by = found.assign(lr=np.log(found["best_lr"]), edge=found["edge"] != INSIDE).groupby("rank")
    return pd.DataFrame({"lr": np.exp(by["lr"].mean()), "edge": by["edge"].any()})


def _draw_basin(
    ax: Axes, sweep: Sweep, rule: DrawnRule, rank: float, top: float, best: pd.DataFrame, row: int
) -> set[str]:
    """The mean loss of one rank over seeds with its range, a mark at its best rate in a row at the
    bottom, and crosses where a seed diverged. Returns the marks that it drew: ``cross``, ``best``,
    ``edge``."""
    cells, name = sweep.of(rule), style.rank_name(rank)
    colour, who = style.shade(rule, rank, sweep.ranks), f"{style.gid(rule)} r={name}"
    loss = cells[cells["rank"] == rank].groupby("lr")["loss"]
    means, whole = loss.agg(["mean", "min", "max"]), loss.count() == loss.size()
    drawn, lost = means[whole], means.index[~whole].to_numpy(float)
    marks = set[str]()
    if len(lost):
        cross = style.CROSS | {"markersize": 3.5, "transform": ax.get_xaxis_transform()}
        ax.plot(lost, np.ones(len(lost)), color=colour, gid=f"cross {who}", **cross)
        marks = {"cross"}
    if drawn.empty:
        return marks
    x, mean = drawn.index.to_numpy(float), drawn["mean"].to_numpy(float)
    look: dict[str, Any] = {"linestyle": "dashed" if math.isinf(rank) else "solid", **style.DOTS}
    ax.plot(x, mean, color=colour, gid=f"line {who}", **look)
    style.band(ax, x, drawn["min"], drawn["max"], colour, f"band {who}", alpha=0.12)
    in_view = max(1, (x <= sweep.rates_in_view[-1]).sum())
    style.label_end(ax, min(mean[in_view - 1], top), name, colour)
    if rank not in best.index:
        return marks
    mark = "edge" if best["edge"][rank] else "best"
    look = {"gid": f"{mark} {who}", **(style.HOLLOW if mark == "edge" else {})}
    style.best_mark(ax, float(best["lr"][rank]), row, colour, **look)
    return marks | {mark}


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
