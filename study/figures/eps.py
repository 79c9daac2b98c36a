"""Gradients in units of Adam's eps: with rank they can shrink until eps affects the updates."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from study.figures import laws, style
from study.figures.captions import on_batch
from study.figures.selection import Absent, Tables, holding, per_layer
from study.vocabulary.quantities import SITES
from study.vocabulary.thresholds import SIGN_LIKE_FROM

FACTORS, STAT = ("A_grad", "B_grad"), "rms"
MOST_FAMILIES = 3


@style.paper()
def eps_over_ranks(tables: Tables) -> Figure:
    """Gradient rms of each factor on the training batch, divided by the optimizer's eps, against
    the rank. In the grey
    area eps affects the updates.

    The step is the first at which both factors have a gradient: A has none while B = 0. A point is
    a cell's mean over layers of the log. Bars, the 5th to 95th percentile over layers, show layers
    with small gradients.
    """
    series = _in_eps(tables)
    both = pd.concat(list(series.values()), ignore_index=True)
    cells = holding(tables.cells, both, "A_grad or B_grad rms")
    shown, left_out = laws.measured(cells, both, MOST_FAMILIES)

    families = [one.family for one in shown]
    ratio = 0.58 * len(series) / 2
    page, grid = laws.panels(families, len(series), ratio=ratio, more=2, column=style.FULL)
    inches = page.get_figwidth() / len(series) - 0.6
    drawn: list[laws.Law] = []
    for panels, one in zip(grid, shown, strict=True):
        step = _first_step(one, series)
        for ax, (site, rows) in zip(panels, series.items(), strict=True):
            where = laws.over_layers(site, STAT)
            found = laws.layer_laws(one.family, rows, tables.exponents, step, where)
            found = [_fit_in_eps(law, float(one.family.keys["eps"])) for law in found]
            heading = f"{SITES[site].label}: {STAT} of {SITES[site].symbol} / eps"
            mark = _threshold(ax)
            laws.draw(ax, found, one.family, heading=heading, inches=inches, more=[mark])
            drawn += found
        style.y_label(panels[0], f"gradient / eps at step {step}", "mean over layers of the log")
        low = min(ax.get_ylim()[0] for ax in panels)
        panels[0].set_ylim(bottom=min(low, 0.5 * SIGN_LIKE_FROM))
        style.log_axis(panels)
        for ax in panels:
            low = ax.get_ylim()[0]
            ax.axhspan(low, SIGN_LIKE_FROM, color=style.FAINT, alpha=0.13, linewidth=0, zorder=0)
    return style.finish(
        page,
        laws.fine_print(drawn, laws.PER_LAYER),
        on_batch(),
        left_out,
        shown=families,
    )


def _in_eps(tables: Tables) -> dict[str, pd.DataFrame]:
    """By site, the rms of every layer's gradient over the eps of its cell.

    Raises :class:`Absent` if no cell has an eps or no gradient was probed.
    """
    cells = tables.cells
    if cells.empty or "eps" not in cells or not (cells["eps"].astype(float) > 0).any():
        raise Absent("no optimizer with an eps in the tables")
    cells = cells[cells["eps"].astype(float) > 0]
    eps = dict(zip(cells["cell_id"].astype(str), cells["eps"].astype(float), strict=True))
    found = {}
    for site in FACTORS:
        rows = per_layer(cells, tables.probes, site, STAT)
        rows = rows[rows["cell_id"].isin(set(eps))]
        if len(rows):
            found[site] = rows.assign(value=rows["value"] / rows["cell_id"].map(eps).astype(float))
    if not found:
        raise Absent("no rms of A_grad or B_grad in the tables")
    return found


def _first_step(one: laws.Measured, series: dict[str, pd.DataFrame]) -> int:
    """The first step at which every factor of the family has a gradient."""
    cells = set(one.family.cells["cell_id"])
    steps = [set(rows.loc[rows["cell_id"].isin(cells), "step"]) for rows in series.values()]
    return int(min(set.intersection(*steps) & set(one.steps), default=one.steps[0]))


def _fit_in_eps(law: laws.Law, eps: float) -> laws.Law:
    """The law with its fitted line in units of ``eps``; the slope stays the same."""
    if law.fit is None:
        return law
    values: dict[Any, Any] = law.fit.to_dict()
    fit = pd.Series({**values, "log_stat_mean": values["log_stat_mean"] - np.log(eps)})
    return dataclasses.replace(law, fit=fit)


def _threshold(ax: Axes) -> tuple[Line2D, str]:
    """The line below which eps affects the updates, and its entry in the legend. gid: ``eps``."""
    look = style.THEORY | style.keywords(linewidth=0.8, zorder=1.5)
    line = ax.axhline(SIGN_LIKE_FROM, gid="eps", **look)
    return line, f"{SIGN_LIKE_FROM:g}: below, eps affects the updates"
