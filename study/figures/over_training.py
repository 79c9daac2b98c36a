"""Loss and gradient norm over training (the paper's Figures 2 and 3): a curve per rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.analysis.grouping import end_steps
from study.figures import style
from study.figures.captions import on_batch, span
from study.figures.selection import DrawnRule, Family, Tables, cells_of, holding, per_step, probed
from study.vocabulary.quantities import GRADIENT_NORM, MEAN_GRADIENT_NORM, METRICS
from study.vocabulary.statuses import BROKEN

MOST_RULES = 5
FEWEST_EVALUATIONS = 3
"""With fewer points, a line would suggest values that were not measured."""
LARGEST_LOG = 500.0
"""e^500 is still finite."""
MARKED_UP_TO = 12
"""Curves with at most this many points have markers."""


class PanelRow(NamedTuple):
    """A row of panels: its label, and a (cell_id, step, value) series. ``geometric``: its mean."""

    label: tuple[str, str]
    series: pd.DataFrame
    geometric: bool


@dataclass(frozen=True)
class Course:
    """One rule at one rank: the mean over its complete cells with its range, or one cell that is
    not complete. A broken cell without two values is a point at infinity."""

    rule: DrawnRule
    rank: float
    step: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    cells: int
    status: str

    @property
    def complete(self) -> bool:
        return self.status == "complete"

    @property
    def broken(self) -> bool:
        return self.status in BROKEN

    @property
    def has_line(self) -> bool:
        return bool(np.isfinite(self.value).any())

    @property
    def gid(self) -> str:
        return f"{style.gid(self.rule)} r={style.rank_name(self.rank)} {self.status}"


@style.paper()
def loss_curves(tables: Tables) -> Figure:
    """Training loss over training, one curve per rank; below it held-out perplexity, if the study
    was evaluated at three steps or more (Kalajdzievski 2023, arXiv 2312.03732, Figure 2).

    A column per rule; rows share their y axis, and show the other rules in grey. Losses are means
    over target tokens in nats. Perplexity is the exponential of the held-out loss; its mean over
    seeds is geometric.
    """
    loss, heldout = (per_step(tables, name) for name in ("loss", "eval_loss"))
    metric = METRICS["loss"]
    rows = [PanelRow((metric.label, f"({metric.unit})"), loss, geometric=False)]
    if heldout["step"].nunique() >= FEWEST_EVALUATIONS:
        perplexity = np.exp(np.minimum(heldout["value"], LARGEST_LOG))
        rows.append(PanelRow(("held-out", "perplexity"), heldout.assign(value=perplexity), True))
    return _over_training(tables.cells, rows, "finite training loss", ratio=0.52)


@style.paper()
def grad_norm_curves(tables: Tables) -> Figure:
    """Norm of the gradient over all adapters, on the training batch and before clipping, over
    training, one curve per rank (Kalajdzievski 2023, Figure 3).

    Every step is drawn; a loop that also trains other weights has only the probed steps. Means over
    seeds are geometric. The paper calls its quantity the average parameter gradient norm. If the
    statistic ``mean_norm`` was measured, a second row of panels shows the other reading at the
    probed steps: the mean of the gradient norms of all A and B.
    """
    norm, mean = (
        probed(tables, quantity.site, quantity.stat, model=True)
        for quantity in (GRADIENT_NORM, MEAN_GRADIENT_NORM)
    )
    every_step = per_step(tables, "grad_norm")
    every_step = every_step[every_step["value"] > 0]
    both = norm.merge(every_step, on=["cell_id", "step"])  # of other weights too, they differ
    same = np.allclose(both["value_x"].astype(float), both["value_y"].astype(float), rtol=0.02)
    series = pd.concat([norm, every_step if same else every_step.head(0)])
    series = series.drop_duplicates(["cell_id", "step"])
    rows = [PanelRow((GRADIENT_NORM.name, GRADIENT_NORM.symbol), series, geometric=True)]
    if len(mean):
        rows.append(PanelRow((MEAN_GRADIENT_NORM.name, MEAN_GRADIENT_NORM.symbol), mean, True))
    return _over_training(tables.cells, rows, "model-wide gradient norm", ratio=0.62, log=True)


def _over_training(
    cells: pd.DataFrame, rows: Sequence[PanelRow], what: str, *, ratio: float, log: bool = False
) -> Figure:
    """Settings one below the other, with rows of panels and a column per rule."""
    held = cells_of(cells, rows[0].series, what)["cell_id"]
    cells = cells[cells["cell_id"].isin(held) | cells["status"].isin(BROKEN)]

    def of_family(family: Family) -> list[list[Course]]:
        found = [_curves(family, row.series, log=row.geometric) for row in rows]
        return found if any(curve.has_line for one in found for curve in one) else []

    absent = "no run with two steps in the tables"
    shown, left_out = holding(cells, of_family, absent, rules=MOST_RULES)
    of_rows = zip(*shown.values(), strict=True)
    lines = sum(any(curve.has_line for one in row for curve in one) for row in of_rows)
    columns = min(max(len(family.rules) for family in shown), MOST_RULES)
    ratio *= max(columns, 2) / 2  # the height does not depend on the number of columns
    page, grid = style.panels(list(shown), columns, ratio=ratio, lines=lines, sharex=True)
    for part, (family, every) in zip(grid, shown.items(), strict=True):
        rules, ranks = family.rules[:columns], style.ranks_to_draw(family.ranks)
        ends = ranks[0], ranks[-1]
        part = np.atleast_2d(part)
        for axes, row, curves in zip(part, rows, every, strict=False):
            found = [c for c in curves if c.rule in rules and (c.rank in ranks or c.broken)]
            reach = _limits(found, log=log)
            for ax, rule in style.each(axes, rules):
                _draw(ax, [curve for curve in found if curve.rule == rule], ranks, reach)
                for other in found:
                    if other.complete and other.rule != rule and other.rank in ends:
                        look: dict[str, Any] = {"color": style.CONTEXT, "gid": f"other {other.gid}"}
                        ax.plot(other.step, other.value, linewidth=0.4, zorder=0.5, **look)
            axes[0].set_ylim(*reach)
            style.y_axis(axes, *row.label, log=log)
        for ax, rule in zip(part[0], rules, strict=False):
            style.heading(ax, rule, columns)
        steps = [c.step for curves in every for c in curves if c.has_line and c.rule in rules]
        for ax in part[-1]:
            style.step_axis(ax, np.concatenate(steps))
    mean = "geometric mean" if log else "mean"
    every_curve = [curve for every in shown.values() for curves in every for curve in curves]
    return style.finish(
        page,
        style.on_ranks(family.ranks for family in shown),
        *_fine_print(every_curve, mean),
        on_batch() if log else "",  # the panels of losses name it
        left_out,
    )


def _curves(family: Family, series: pd.DataFrame, *, log: bool) -> list[Course]:
    """The family's curves of a series; with ``log`` the mean is geometric. A cell that is not
    complete has its own."""
    series = series[series["cell_id"].isin(set(family.cells["cell_id"]))]
    wide = series.pivot(index="step", columns="cell_id", values="value")
    cells = family.cells.assign(end=end_steps(family.cells))
    found = []
    groups: Any = cells.groupby(["rule", "rank"])
    for (rule, rank), group in groups:
        whole = group[(group["status"] == "complete") & group["cell_id"].isin(wide.columns)]
        if len(whole):
            rows = wide[list(whole["cell_id"])].dropna()
            found.append(_averaged(rule, rank, rows, "complete", log))
        for cell in group.drop(whole.index).itertuples():
            alone = wide.reindex(columns=[cell.cell_id]).dropna()
            if len(alone) < 2 and cell.status in BROKEN:
                alone = pd.DataFrame([[np.inf]], [cell.end])
            if len(alone) > 1 or cell.status in BROKEN:
                found.append(_averaged(rule, rank, alone, str(cell.status), log))
    return found


def _averaged(rule: DrawnRule, rank: float, wide: pd.DataFrame, status: str, log: bool) -> Course:
    values = np.log(wide.to_numpy(float)) if log else wide.to_numpy(float)
    lines = [values.mean(axis=1), values.min(axis=1), values.max(axis=1)]
    mean, low, high = map(np.exp, lines) if log else lines
    return Course(rule, rank, wide.index.to_numpy(), mean, low, high, values.shape[1], status)


def _draw(
    ax: Axes, found: Sequence[Course], ranks: Sequence[float], reach: tuple[float, float]
) -> None:
    """The curves of a rule, labelled with their ranks, and their range over seeds. A broken one
    ends in a cross, within ``reach``."""
    dots = "o" if all(len(curve.step) <= MARKED_UP_TO for curve in found) else None
    last: dict[float, Course] = {}  # by rank: the longest, if none is complete
    for curve in sorted(found, key=lambda c: (not c.complete, c.rank, -c.step[-1])):
        colour = style.shade(curve.rule, curve.rank, ranks)
        if curve.cells > 1:
            # Many overlapping areas become opaque.
            ends, alpha = (curve.low, curve.high), max(0.05, 0.6 / (3 + len(ranks)))
            style.band(ax, curve.step, *ends, colour, f"band {curve.gid}", alpha=alpha, zorder=1)
        if curve.broken:
            end = np.clip(curve.value[-1:], *reach)
            ax.plot(curve.step[-1:], end, color=colour, gid=f"cross {curve.gid}", **style.CROSS)
        if curve.has_line:
            dashes = "dashed" if np.isinf(curve.rank) else "solid"
            look: dict[str, Any] = {"color": colour, "linestyle": dashes, "markersize": 2.2}
            look |= {"linewidth": 0.9 if curve.complete else 0.5, "marker": dots}
            ax.plot(curve.step, curve.value, gid=f"curve {curve.gid}", **look)
            last.setdefault(curve.rank, curve)
    for rank, curve in last.items():
        if rank in ranks:
            y = float(np.clip(curve.value[-1], *reach))
            colour = style.shade(curve.rule, rank, ranks)
            style.label_end(ax, y, style.rank_name(rank), colour)


def _limits(found: Sequence[Course], *, log: bool) -> tuple[float, float]:
    """The y range: that of the complete curves, plus up to half of it for the other curves."""
    found = [curve for curve in found if curve.has_line]
    if not found:
        return (1.0, 10.0) if log else (0.0, 1.0)
    scale = np.log if log else np.asarray
    complete = [curve for curve in found if curve.complete] or found
    values = scale(np.concatenate([v for c in complete for v in (c.low, c.high)]))
    every = scale(np.concatenate([curve.value for curve in found]))
    low, high = float(values.min()), float(values.max())
    span = (high - low) or 0.1 * abs(high) or 1.0
    low, high = (
        max(min(low, float(every.min())), low - span / 2),
        min(max(high, float(every.max())), high + span / 2),
    )
    margin = 0.05 * (high - low)
    low, high = low - margin, high + margin
    return (float(np.exp(low)), float(np.exp(high))) if log else (low, high)


def _fine_print(drawn: Sequence[Course], mean: str) -> list[str]:
    """What lines, bands and crosses mean. ``drawn``: the curves of all ranks."""
    complete = [curve for curve in drawn if curve.complete]
    seeds = {curve.cells for curve in complete}
    broken = " and ".join(s for s in BROKEN if any(curve.status == s for curve in drawn))
    return [
        f"Lines: {mean} over {span(seeds)} seeds; bands: their range."
        if max(seeds, default=1) > 1
        else "",
        "Grey: the other rules, at the lowest and the highest rank."
        if len({curve.rule for curve in complete}) > 1
        else "",
        "Thin lines: runs that have not finished."
        if any(not curve.complete and not curve.broken for curve in drawn)
        else "",
        f"Thin lines ending in ×: {broken} runs, at their last finite value or the panel's edge."
        if broken
        else "",
    ]
