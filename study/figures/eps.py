"""Adam's eps beside the gradients: as the rank grows they may sink to it, and Adam to something that is not Adam."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from study.figures import laws, style
from study.figures.activation_moments import layer_laws
from study.figures.selection import Absent, Tables, holding, per_layer

MOST_FAMILIES = 4
ENOUGH = 100.0
"""Below this many eps, eps has a say in the update: it is no longer the sign-like one that theory takes Adam for."""
HEADINGS = {
    "A_grad": r"$A$:  rms of $\nabla_{\!A} L$ / eps",
    "B_grad": r"$B$:  rms of $\nabla_{\!B} L$ / eps",
}


@style.paper()
def eps_over_ranks(tables: Tables) -> Figure:
    """The rms of each factor's gradient in units of the optimizer's eps against the rank, the line at 100 marked.

    At the first step at which both factors have a gradient (A has none while B = 0). A point is a cell's mean over
    layers of the log, a bar the 5th to 95th percentile over layers, so that a few dead layers show.
    """
    cells = tables.cells
    if cells.empty or "eps" not in cells or not (cells["eps"].astype(float) > 0).any():
        raise Absent("no optimizer with an eps in the tables")
    cells = cells[cells["eps"].astype(float) > 0]
    eps = dict(zip(cells["cell_id"].astype(str), cells["eps"].astype(float), strict=True))
    series = {}
    for site in HEADINGS:
        rows = per_layer(cells, tables.probes, site, "rms")
        rows = rows[rows["cell_id"].isin(set(eps))]
        if len(rows):
            series[site] = rows.assign(value=rows["value"] / rows["cell_id"].map(eps).astype(float))
    if not series:
        raise Absent("no rms of A_grad or B_grad in the tables")
    both = pd.concat(list(series.values()), ignore_index=True)
    shown, left_out = laws.measured(
        holding(cells, both, "A_grad or B_grad rms"), both, MOST_FAMILIES
    )

    entries = max(len(one.family.rules) for one in shown) + 2
    page = style.figure(
        len(shown),
        len(series),
        ratio=0.58 * len(series) / 2,
        above=0.3 + 0.14 * entries * len(shown),
    )
    inches = page.get_figwidth() / len(series) - 0.6
    drawn: list[laws.Law] = []
    for part, one in zip(style.rows(page, [o.family.label for o in shown]), shown, strict=True):
        panels = part.subplots(1, len(series), sharey=True, squeeze=False)[0]
        mine = {
            site: rows[rows["cell_id"].isin(set(one.family.cells["cell_id"]))]
            for site, rows in series.items()
        }
        shared = set.intersection(*(set(rows["step"]) for rows in mine.values()))
        step = int(min(shared & set(one.steps), default=one.steps[0]))
        for ax, (site, rows) in zip(panels, mine.items(), strict=True):
            where = {
                "site": site,
                "stat": "rms",
                "batch": "train",
                "layer": "mean_log",
                "kind": "all",
            }
            found = layer_laws(
                one.family, rows[rows["step"] == step], tables.exponents, step, where
            )
            found = [_in_units(law, float(one.family.keys["eps"])) for law in found]
            laws.draw(
                ax, found, one.family, heading=HEADINGS[site], inches=inches, more=[_mark(ax)]
            )
            drawn += found
        style.y_label(panels[0], f"gradient / eps at step {step}", "mean over layers of the log")
        low = min(ax.get_ylim()[0] for ax in panels)
        panels[0].set_ylim(bottom=min(low, 0.5 * ENOUGH))
        style.log_axis(panels)
        for ax in panels:
            ax.axhspan(
                panels[0].get_ylim()[0],
                ENOUGH,
                color=style.FAINT,
                alpha=0.13,
                linewidth=0,
                zorder=0,
            )
    return style.finish(
        page, laws.fine_print(drawn, "one per seed; bars: 5–95% of layers"), left_out
    )


def _in_units(law: laws.Law, eps: float) -> laws.Law:
    """The law with its line, like its points, in units of ``eps``: the slope is the same."""
    if law.fit is None:
        return law
    values: dict[Any, Any] = law.fit.to_dict()
    return dataclasses.replace(
        law, fit=pd.Series({**values, "log_stat_mean": values["log_stat_mean"] - np.log(eps)})
    )


def _mark(ax: Axes) -> tuple[Line2D, str]:
    """The line at 100 and what the legend says of it. gid: ``enough``."""
    line = ax.axhline(
        ENOUGH, color=style.INK, linewidth=0.8, linestyle=(0, (5, 2)), zorder=1.5, gid="enough"
    )
    return line, f"{ENOUGH:g}; below: eps matters"
