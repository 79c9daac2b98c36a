"""Loss and gradient norm over training (the paper's Figures 2 and 3): a curve per rank."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure, SubFigure

from study.figures import style
from study.figures.captions import on_batch
from study.figures.selection import (
    Absent,
    Family,
    Tables,
    families,
    holding,
    model_wide,
    most_varied,
    per_step,
    rules_left_out,
)
from study.figures.training_curves import (
    Curve,
    coincide,
    curves,
    draw,
    fine_print,
    limits,
    step_axis,
)
from study.vocabulary.quantities import GRADIENT_NORM, MEAN_GRADIENT_NORM, METRICS
from study.vocabulary.statuses import BROKEN

MOST_RULES = 5
FEWEST_EVALUATIONS = 3
"""With fewer, a line would suggest a course that nobody measured."""
LARGEST_LOG = 500.0
"""e^500 is still finite."""


@dataclass(frozen=True)
class Row:
    """A row of panels: a (cell_id, step, value) series, with its label on the y axis.

    ``geometric``: whether the mean over seeds is geometric.
    """

    label: tuple[str, str]
    series: pd.DataFrame
    geometric: bool

    def curves(self, family: Family) -> list[Curve]:
        return curves(family, self.series, log=self.geometric)

    def has_lines(self, family: Family) -> bool:
        return any(curve.has_line for curve in self.curves(family))


@style.paper()
def loss_curves(tables: Tables) -> Figure:
    """Training loss and held-out perplexity over training, one curve per rank (Kalajdzievski 2023,
    arXiv 2312.03732, Figure 2).

    A row of panels each; the second only if the study was evaluated at three steps or more. A
    column per rule; rows share their y axis, and show the other rules in grey. Losses are means
    over target tokens in nats. Perplexity is the exponential of the held-out loss; its mean over
    seeds is geometric.
    """
    loss, heldout = (per_step(tables.cells, tables.metrics, name) for name in ("loss", "eval_loss"))
    log = np.minimum(heldout["value"].astype(float), LARGEST_LOG)
    metric = METRICS["loss"]
    rows = [
        Row((metric.label, f"({metric.unit})"), loss, geometric=False),
        Row(("held-out", "perplexity"), heldout.assign(value=np.exp(log)), geometric=True),
    ]
    few = heldout["step"].nunique() < FEWEST_EVALUATIONS
    cells = _shown(tables.cells, loss, "finite training loss")
    return _over_training(cells, rows[:1] if few else rows, most=3, ratio=0.52)


@style.paper()
def grad_norm_curves(tables: Tables) -> Figure:
    """Norm of the gradient over all adapters, on the training batch and before clipping, over
    training, one curve per rank (Kalajdzievski 2023, Figure 3).

    The norms are those of the probes if every cell has them, else the ``grad_norm`` of every step.
    The two are the same number; only the steps differ. Means over seeds are geometric. The paper
    names its quantity the average parameter gradient norm. If the statistic ``mean_norm`` was
    measured, a second row of panels shows the other reading: the mean over all A and B of the norm
    of each one's gradient.
    """
    probed, mean = (
        model_wide(tables.cells, tables.probes, quantity.site, quantity.stat)
        for quantity in (GRADIENT_NORM, MEAN_GRADIENT_NORM)
    )
    every_step = per_step(tables.cells, tables.metrics, "grad_norm")
    every_step = every_step[every_step["value"] > 0]
    series = probed if set(probed["cell_id"]) >= set(every_step["cell_id"]) else every_step
    rows = [
        Row((quantity.name, quantity.symbol), values, geometric=True)
        for quantity, values in ((GRADIENT_NORM, series), (MEAN_GRADIENT_NORM, mean))
        if quantity is GRADIENT_NORM or len(values)
    ]
    cells = _shown(tables.cells, series, "model-wide gradient norm")
    return _over_training(cells, rows, most=3, ratio=0.62, log=True)


def _shown(cells: pd.DataFrame, series: pd.DataFrame, what: str) -> pd.DataFrame:
    """The cells with values in ``series``, and the broken ones, which may have none."""
    held = holding(cells, series, what)
    return cells[cells["cell_id"].isin(held["cell_id"]) | cells["status"].isin(BROKEN)]


def _over_training(
    cells: pd.DataFrame, rows: list[Row], *, most: int, ratio: float, log: bool = False
) -> Figure:
    """Settings one below the other, each with its rows of panels and a column per rule."""
    drawable = [family for family in families(cells) if any(row.has_lines(family) for row in rows)]
    if not drawable:
        raise Absent("no run with two steps in the tables")
    shown, left_out = most_varied(drawable, most)
    rows = [row for row in rows if any(row.has_lines(family) for family in shown)]
    columns = min(max(len(family.rules) for family in shown), MOST_RULES)
    page = style.page_of_rules(len(rows) * len(shown), columns, ratio, len(shown))
    drawn: list[list[Curve]] = []
    parts = style.rows(page, [family.label for family in shown])
    for part, family in zip(parts, shown, strict=True):
        drawn += _draw(part, family, rows, columns, log)
    hidden = any(coincide(found, limits(found, log=log, margin=0), log=log) for found in drawn)
    text = fine_print(
        [curve for found in drawn for curve in found],
        ranks=max(len(style.ranks_to_draw(family.ranks)) for family in shown),
        mean="geometric mean" if log else "mean",
        hidden=hidden,
    )
    return style.finish(
        page,
        text,
        on_batch() if log else "",  # the panels of losses name it
        left_out,
        rules_left_out(shown, MOST_RULES),
        shown=shown,
    )


def _draw(
    part: Figure | SubFigure, family: Family, rows: list[Row], columns: int, log: bool
) -> list[list[Curve]]:
    """The panels of one setting. Return the curves of each row, of all ranks."""
    panels = part.subplots(len(rows), columns, sharex=True, sharey="row", squeeze=False)
    rules, ranks = family.rules[:columns], style.ranks_to_draw(family.ranks)
    every: list[list[Curve]] = []
    for axes, row in zip(panels, rows, strict=True):
        measured = [curve for curve in row.curves(family) if curve.rule in rules]
        found = [curve for curve in measured if curve.rank in ranks or curve.broken]
        reach = limits(found, log=log, margin=0)
        for ax, rule in zip(axes, rules, strict=False):
            own = [curve for curve in found if curve.rule == rule]
            others = [c for c in found if c.rule != rule and c.rank in (ranks[0], ranks[-1])]
            draw(ax, own, others, ranks, reach)
        style.y_label(axes[0], *row.label)
        axes[0].set_ylim(*limits(found, log=log, margin=0.05))
        if log:
            style.log_axis(axes)
        else:
            style.linear_axis(axes[0])
        every.append(measured)
    for axes in panels:
        style.first(axes, len(rules))
    for ax, rule in zip(panels[0], rules, strict=False):
        style.heading(ax, rule, columns)
    steps = [curve.step for measured in every for curve in measured if curve.has_line]
    for ax in panels[-1]:
        step_axis(ax, np.concatenate(steps))
    return every
