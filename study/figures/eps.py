"""Gradients in units of Adam's eps: with rank they can shrink until eps affects the updates."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from study.figures import laws, style
from study.figures.captions import on_batch
from study.figures.selection import Absent, Tables, cells_of, probed
from study.vocabulary.quantities import SITES
from study.vocabulary.thresholds import SIGN_LIKE_FROM

FACTORS, STAT = ("A_grad", "B_grad"), "rms"
BELOW = f"{SIGN_LIKE_FROM:g}: below, eps affects the updates"


@style.paper()
def eps_over_ranks(tables: Tables) -> Figure:
    """Gradient rms of each factor on the training batch, divided by the optimizer's eps, against
    the rank. In the grey area eps affects the updates.

    The step is the first at which both factors have a gradient: A has none while B = 0. A point is
    a cell's mean over layers of the log. Bars, the 5th to 95th percentile over layers, show layers
    with small gradients.
    """
    series = _in_eps(tables)
    both = pd.concat(list(series.values()), ignore_index=True)
    shown, left_out = laws.measured(cells_of(tables.cells, both, "A_grad or B_grad rms"), both)

    exponents, columns = tables.exponents, len(series)
    if len(exponents):  # the lines in units of eps, with the same slopes
        in_eps = exponents["log_stat_mean"] - np.log(exponents["eps"].astype(float))
        exponents = exponents.assign(log_stat_mean=in_eps)
    options: dict[str, Any] = {"ratio": 0.58 * columns / 2, "column": style.FULL}
    page, grid = laws.panels(list(shown), columns, more=2, **options)
    inches = page.get_figwidth() / columns - 0.6
    drawn: list[laws.Law] = []
    for panels, (family, steps) in zip(grid, shown.items(), strict=True):
        own = set(family.cells["cell_id"])
        both_at = [set(rows.loc[rows["cell_id"].isin(own), "step"]) for rows in series.values()]
        step = int(min(set(steps).intersection(*both_at), default=steps[0]))
        for ax, (site, rows) in zip(panels, series.items(), strict=True):
            found = laws.layer_laws(family, rows, exponents, step, site=site, stat=STAT)
            heading = f"{SITES[site].label}: {STAT} of {SITES[site].symbol} / eps"
            look = style.THEORY | {"linewidth": 0.8, "zorder": 1.5}
            mark = ax.axhline(SIGN_LIKE_FROM, gid="eps", **look)
            laws.draw(ax, found, family, heading, inches, more={BELOW: mark})
            drawn += found
        low = min(0.5 * SIGN_LIKE_FROM, *(ax.get_ylim()[0] for ax in panels))
        panels[0].set_ylim(bottom=low)
        unit = "mean over layers of the log"
        style.y_axis(panels, f"gradient / eps at step {step}", unit, log=True)
        for ax in panels:
            area = {"color": style.FAINT, "alpha": 0.13, "linewidth": 0, "zorder": 0}
            ax.axhspan(ax.get_ylim()[0], SIGN_LIKE_FROM, **area)
    return style.finish(page, laws.fine_print(drawn, laws.PER_LAYER), on_batch(), left_out)


def _in_eps(tables: Tables) -> dict[str, pd.DataFrame]:
    """By site, the rms of every layer's gradient over the eps of its cell.

    Raises :class:`Absent` if no cell has an eps or no gradient was probed.
    """
    cells = tables.cells
    eps = cells.set_index(cells["cell_id"].astype(str)).get("eps", pd.Series(dtype=float))
    eps = eps[eps.astype(float) > 0].astype(float)
    if eps.empty:
        raise Absent("no optimizer with an eps in the tables")
    found = {site: probed(tables, site, STAT) for site in FACTORS}
    found = {
        site: rows.assign(value=rows["value"] / rows["cell_id"].map(eps).astype(float)).dropna()
        for site, rows in found.items()
    }
    found = {site: rows for site, rows in found.items() if len(rows)}
    if not found:
        raise Absent("no rms of A_grad or B_grad in the tables")
    return found
