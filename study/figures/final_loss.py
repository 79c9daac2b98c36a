"""The final held-out loss: of each run, against the rank, and of adapters cut to lower ranks; and
the bits that adapters stored.

Does rank help, or only the size of the steps? How much rank does a run need?
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.analysis.capacity import best_stored, setting_columns
from study.analysis.losses import (
    INSIDE,
    at_best_rates,
    compared_losses,
    end_losses,
    fixed_rate,
    full_loss,
)
from study.figures import style
from study.figures.selection import (
    Absent,
    DrawnRule,
    Family,
    Tables,
    families,
    holding,
    most_varied,
    rules_of,
)
from study.vocabulary.quantities import METRICS
from study.vocabulary.scaling import RULES
from study.vocabulary.statuses import BROKEN, DONE

METRIC = METRICS["eval_loss"]
LABEL = (f"final {METRIC.label}", f"({METRIC.unit})")
"""The y axis: quantity and unit."""
MOST_RULES = 5
DOTTED: dict[str, Any] = {"linestyle": "dotted", "linewidth": 0.9}
ABOVE_NEAR = 2.0
"""How far a basin's y axis reaches, as a multiple of the losses below the best rates."""


@dataclass(frozen=True, eq=False)
class Sweep(Family):
    """A family whose learning rates may differ. ``cells``: its ended runs, with NaN as the loss of
    a broken one."""

    @property
    def rates(self) -> list[float]:
        return sorted(set(self.cells["lr"]))

    @property
    def y_range(self) -> tuple[float, float]:
        """From the lowest loss to :data:`ABOVE_NEAR` times as far above it as the losses at the two
        rates below the best one of each rank; above it where there is none. Losses above the best
        rate can be any number."""
        best, lines = float(self.cells["loss"].min()), self.cells.groupby(["rule", "rank"])
        means = [line.groupby("lr")["loss"].mean().dropna() for _, line in lines]
        at = [(mean, int(mean.argmin())) for mean in means if len(mean)]
        near = max(mean.iloc[max(n - 2, 0) : max(n, 1) + 1].max() for mean, n in at)
        high = best + ABOVE_NEAR * (near - best)
        margin = 0.06 * ((high - best) or 0.1 * abs(best) or 1.0)
        return best - margin, high + margin

    @property
    def rates_in_view(self) -> list[float]:
        """The rates at which a mean loss is below the top of :attr:`y_range`, or a run broke."""
        losses = self.cells.fillna({"loss": -math.inf}).groupby(["rule", "rank", "lr"])["loss"]
        return sorted(losses.mean()[lambda mean: mean <= self.y_range[1]].index.unique("lr"))

    def of(self, rule: DrawnRule) -> pd.DataFrame:
        return self.cells[self.cells["rule"] == rule]


def sweeps(
    tables: Tables, cells: pd.DataFrame | None = None, apart: Sequence[str] = ("lr",)
) -> list[Sweep]:
    """The settings of a study, the columns ``apart`` aside, with the final held-out loss of their
    runs. ``cells``: by default those of the study."""
    cells = tables.cells if cells is None else cells
    beside = cells.reindex(columns=[*apart]).astype(float)
    if len(cells):
        beside["loss"] = end_losses(cells, tables.metrics)
    found = []
    for family in families(cells.drop(columns=[*apart])) if len(cells) else ():
        own = family.cells.join(beside).astype({"cell_id": str})
        own = own[own["status"].isin(DONE) & (own["loss"].notna() | own["status"].isin(BROKEN))]
        if own["loss"].notna().any():
            found.append(Sweep(family.words, own))
    if not found:
        raise Absent("no finished run with a held-out loss after its first step")
    return found


@style.paper()
def loss_against_rank(tables: Tables) -> Figure:
    """Final held-out loss against the rank: at one learning rate, at the best learning rate of each
    rank, and at matched step size.

    The one learning rate is the best at the lowest rank, over all rules: the one that tuning a
    small adapter would choose. Matched: every rule has the learning rate at which its lazy step is
    that of rsLoRA, with equal ``lr gamma`` under a sign-like optimizer and ``lr gamma^2`` under
    SGD. Its loss is interpolated linearly in log lr. If the rules then agree, they differed by step
    size alone. Full fine-tuning (``adapter.rank=full``) is a line, at the best rate tried.
    """
    every = [sweep for sweep in sweeps(tables) if len(sweep.finite_ranks) > 1]
    if not every:
        raise Absent("a loss against the rank needs runs at two ranks")
    shown, left_out = most_varied(every, rules=MOST_RULES)
    points_of = [_panels(sweep, tables) for sweep in shown]
    columns = max(map(len, points_of))
    ratio, above = 0.66 if columns < 3 else 0.9, 0.5 + 0.45 * len(shown)
    page, grid = style.panels(shown, columns, ratio=ratio, above=above)
    inches = page.get_figwidth() / columns - 0.5
    fulls = {
        sweep: full_loss(tables.cells, tables.metrics, sweep.cells["cell_id"].iloc[0])
        for sweep in shown
    }
    beside = sorted({rule for sweep in shown for rule in sweep.rules[:MOST_RULES]})
    for panels, sweep, drawn in zip(grid, shown, points_of, strict=True):
        for ax, (heading, points) in style.each(panels, drawn.items()):
            for rule in sweep.rules[:MOST_RULES]:
                _draw_rule(ax, rule, beside, points[points["rule"] == rule])
            if math.isfinite(full := fulls[sweep]):
                ax.axhline(full, color=style.INK, gid="full", zorder=1, **DOTTED)
                end: dict[str, Any] = {
                    "xycoords": ("axes fraction", "data"),
                    "textcoords": "offset points",
                }
                ax.annotate("full", (1, full), (2, 0), va="center", fontsize=7, **end)
            style.rank_axis(ax, sweep.finite_ranks, inches)
            ax.set_title(heading, loc="left")
        style.y_axis(panels, *LABEL)
    looks = {style.name(rule): style.look(rule, beside) for rule in beside}
    style.legend(page, looks, columns=min(len(beside), 2 * columns))
    every_point = pd.concat([points for drawn in points_of for points in drawn.values()])
    seeds = max(sweep.cells["seed"].nunique() for sweep in shown)
    return style.finish(
        page,
        f"Points: one per seed; lines: mean over {seeds} seeds."
        if seeds > 1
        else "Points: runs (one seed).",
        "Open: the best rate is at an edge of the grid." if every_point["edge"].any() else "",
        "Dashed: infinite rank." if np.isinf(every_point["rank"]).any() else "",
        "Dotted: full fine-tuning at its best rate."
        if np.isfinite([*fulls.values()]).any()
        else "",
        left_out,
    )


def _panels(sweep: Sweep, tables: Tables) -> dict[str, pd.DataFrame]:
    """By heading: the points (rule, rank, loss, edge) of a panel."""
    fixed = fixed_rate(sweep.cells)
    at_fixed = sweep.cells[sweep.cells["lr"] == fixed].assign(edge=False)
    found = {f"learning rate {fixed:g}": at_fixed}
    if len(sweep.rates) > 1:
        own = tables.cells[tables.cells["cell_id"].isin(set(sweep.cells["cell_id"]))]
        compared = compared_losses(own, tables.metrics)
        compared = compared[np.isfinite(compared["loss"])]
        compared = compared.assign(rule=rules_of(compared), edge=compared["edge"] != INSIDE)
        found["best learning rate of each rank"] = compared[compared["how"] == "best"]
        compared = compared[compared["how"] == "matched"]
        # The rate at which most points can be matched; among equals, the one with the lowest loss.
        at_rate = [matched for _, matched in compared.groupby("lr")]
        if at_rate:
            matched = max(at_rate, key=lambda one: (len(one), -one["loss"].mean()))
            rate = matched["lr"].iloc[0]
            found[f"steps matched to {RULES['rslora'].label} at {rate:g}"] = matched
    return {
        head: points[np.isfinite(points["loss"])] for head, points in found.items() if len(points)
    }


def _draw_rule(ax: Axes, rule: DrawnRule, beside: list[DrawnRule], points: pd.DataFrame) -> None:
    """The points and the mean of one rule; infinite rank is a horizontal line."""
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


@style.paper()
def truncated_losses(tables: Tables) -> Figure:
    """Held-out loss after training, with every weight change cut to its k largest singular
    directions, one line per trained rank.

    Each rank is at the best of its learning rates. A line ends with a large marker at the whole
    run, where k is its rank. The loss of the base (k = 0) is much higher: it is in the text below
    the panels. Lines are means over seeds.
    """
    absent = "no truncations in the tables: train with probes.truncations=log"
    rows = getattr(tables, "truncations", pd.DataFrame())
    if rows.empty:
        raise Absent(absent)
    rows = rows.astype({"cell_id": str})
    cells = tables.cells[tables.cells["status"] == "complete"].astype({"cell_id": str})
    cells = cells[cells["cell_id"].isin(set(rows["cell_id"]))].reset_index(drop=True)

    def of_family(family: Family) -> pd.DataFrame:
        own = family.cells.join(cells["lr"])[["cell_id", "rule", "rank", "lr", "seed"]]
        cut = own.merge(rows, on="cell_id").sort_values("kept", kind="stable")
        cut["whole"] = cut.groupby("cell_id")["loss"].transform("last")
        return at_best_rates(cut, "whole", ("rule", "rank"))

    no_rates = cells.drop(columns="lr")
    shown, left_out = holding(no_rates, of_family, absent, rules=MOST_RULES)
    columns = min(max(len(family.rules) for family in shown), MOST_RULES)
    beside = len(shown) if columns == 1 else 1
    ratio = 0.33 * max(columns * beside, 2)
    page, grid = style.panels(list(shown), columns, beside=beside, ratio=ratio, sharex=True)
    losses = pd.concat([cut.loc[cut["kept"] > 0, "loss"] for cut in shown.values()])
    margin = 0.15 * (losses.max() - losses.min())  # room for labels above the markers
    for row, (family, cut) in zip(grid, shown.items(), strict=True):
        kept = sorted({k for k in cut["kept"] if 0 < k < math.inf})
        for ax, rule in style.each(row, family.rules):
            style.rank_axis(ax, kept, page.get_figwidth() / columns / beside - 0.6)
            ax.set_xlabel("rank $k$ of the cut $\\Delta W$")
            _draw_cuts(ax, family, rule, cut[cut["rule"] == rule])
            style.heading(ax, rule, columns)
        row[0].set_xlim(right=2.5 * max(ax.dataLim.x1 for ax in row))
        row[0].set_ylim(losses.min() - margin, losses.max() + margin)
        style.y_axis(row, METRIC.label, f"({METRIC.unit})")
    seeds = max(family.cells["seed"].nunique() for family in shown)
    base = sorted({f"{loss:.2f}" for loss in rows.loc[rows["kept"] == 0, "loss"]})
    return style.finish(
        page,
        f"Lines: mean over {seeds} seeds." if seeds > 1 else "",
        style.on_ranks(family.ranks for family in shown),
        "Large: the whole run.",
        f"Base ($k = 0$): {' to '.join(dict.fromkeys([base[0], base[-1]]))}." if base else "",
        "Each rank at the best of its learning rates." if cells["lr"].nunique() > 1 else "",
        left_out,
    )


def _draw_cuts(ax: Axes, family: Family, rule: DrawnRule, rows: pd.DataFrame) -> None:
    most = max((k for k in rows["kept"] if math.isfinite(k)), default=1.0)
    for rank in style.ranks_to_draw(family.ranks):
        loss = rows[(rows["rank"] == rank) & (rows["kept"] > 0)].groupby("kept")["loss"].mean()
        if loss.empty:
            continue
        colour, name = style.shade(rule, rank, family.ranks), style.rank_name(rank)
        who = f"{style.gid(rule)} r={name}"
        kept = [min(k, 2 * most) for k in loss.index]  # infinite rank: right of all others
        ax.plot(kept, loss, color=colour, gid=f"cut {who}", zorder=2, **style.DOTS)
        look = style.LARGE | {"marker": style.rule_look(rule.scaling).marker, "color": colour}
        ax.plot(kept[-1:], loss.iloc[-1:], gid=f"whole {who}", **look)
        look = {"color": colour, "fontsize": 7, "gid": f"rank {name}"}
        end = kept[-1], loss.iloc[-1]
        ax.annotate(name, end, (3, 3), textcoords="offset points", **look)


COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f5539")
"""Of rules and layers: seven that colour-blind readers tell apart (Okabe and Ito), and a brown."""
USUAL_BITS = 2.0
"""Bits per parameter of the dashed line: of LoRA Without Regret."""


@style.paper()
def bits_stored(tables: Tables) -> Figure:
    """Bits of random strings that adapters stored after their last pass, against their parameters.

    A line per setting, through the means over seeds; a mark per run. The colour shows the rule and
    the layers, the mark the passes. Each rank has the learning rate at which it stored most.
    """
    table = best_stored(tables)
    if table.empty or not (table["bits"] > 0).any():
        raise Absent("no stored bits of data=random_strings in the tables")
    cells = tables.cells[tables.cells["cell_id"].astype(str).isin(table["cell_id"])]
    page, [[ax]] = style.panels([Family((), cells)], 1, ratio=0.45, above=0.3, column=style.FULL)
    names = [name for name in setting_columns(table) if name != "passes"]
    table = table.assign(kind=[", ".join(map(str, row)) for row in table[names].to_numpy()])
    colours = dict(zip(sorted(set(table["kind"])), cycle(COLOURS), strict=False))
    markers = dict(zip(sorted(set(table["passes"])), cycle("os^vD"), strict=False))
    for (kind, passes, _), own in table.groupby(["kind", "passes", "offered"]):
        look = {"color": colours[kind], "marker": markers[passes]}
        mean = own.groupby("parameters")["bits"].mean()
        own, mean = own[own["bits"] > 0], mean[mean > 0]  # a run may have stored nothing
        ax.plot(own["parameters"], own["bits"], ls="none", ms=2.5, alpha=0.5, **look)
        ax.plot(mean.index, mean, gid=f"line {kind}, {passes:g} passes", ms=3, **look)
    for offered in table["offered"].unique():
        ax.axhline(offered, color=style.CONTEXT, ls=style.DOTTED, lw=0.9)
        style.label_end(ax, offered, f"{offered / 1000:.1f} kbit", style.CONTEXT)
    ends = np.array([table["parameters"].min() / 1.3, table["parameters"].max() * 1.3])
    ax.plot(ends, USUAL_BITS * ends, gid="usual", **style.THEORY)
    looks = {kind: {"color": colour} for kind, colour in colours.items() if kind}
    of_passes = {"color": style.INK, "ls": "none", "ms": 3}
    looks |= {f"{n:g} passes": of_passes | {"marker": mark} for n, mark in markers.items()}
    looks[f"{USUAL_BITS:g} bits a parameter"] = style.THEORY
    ax.set(xscale="log", xlim=ends, xlabel="parameters of the adapter")
    ax.set_ylim(table.loc[table["bits"] > 0, "bits"].min() / 1.5, 1.5 * table["offered"].max())
    style.log_ticks(ax.xaxis, (ends[0], ends[1]))
    style.y_axis([ax], "bits stored", log=True)
    style.legend(page, looks, 1, "outside center right")
    return style.finish(
        page,
        "Each rank at the learning rate that stored most. Pale: single seeds. Dotted: the bits of "
        "all strings.",
    )
