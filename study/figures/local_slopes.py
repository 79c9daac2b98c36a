"""Local slopes of random models of several widths, on one curve of rank / crossover."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.analysis.predictions import local_slopes
from study.figures import laws, style
from study.figures.captions import on_batch, sentence_on_ci
from study.figures.selection import Absent, Tables, families, most_varied
from study.vocabulary.quantities import BACKWARD_IN, FORWARD_OUT, WEIGHT_CHANGE

SHOWN = (WEIGHT_CHANGE, BACKWARD_IN, FORWARD_OUT)
STEP = 1
"""The first step at which B is not 0."""
MOST_ROWS = 4
REACH = 1.35
"""Half the length of a short line, as a factor."""
MARKERS = ("o", "s", "D", "^", "v", "P", "X")


@style.paper()
def local_slopes_by_width(tables: Tables) -> Figure:
    """Slopes between neighbouring ranks at several widths of the model, against the rank over the
    crossover. Theory's curve is the same for all widths.

    A row of panels per optimizer and rule, a panel per quantity, after the first update, on the
    training batch.
    """
    cells = tables.cells
    if cells.empty or tables.probes.empty:
        raise Absent("no probes in the tables")
    widths = sorted(set(cells["width"].dropna())) if "width" in cells else []
    if len(widths) < 2:
        raise Absent(
            "local slopes by width need a study over model.width: sweep model.width=64,256"
        )
    colours = mpl.colormaps["plasma"](np.linspace(0, 0.6, len(widths)))
    looks: dict[float, dict[str, Any]] = {
        width: {"color": colour, "marker": MARKERS[place % len(MARKERS)]}
        | {"markersize": 3.4, "linestyle": "none"}
        for place, (width, colour) in enumerate(zip(widths, colours, strict=True))
    }
    slopes = local_slopes(cells, tables.metrics, tables.probes, SHOWN, STEP)
    same = [name for name in ("width", "model_sha256") if name in cells]
    drawn, left_out = most_varied(families(cells.drop(columns=same)), MOST_ROWS)
    rows = [(family, rule) for family in drawn for rule in family.rules][:MOST_ROWS]
    labels = [", ".join(filter(None, (family.label, style.name(rule)))) for family, rule in rows]
    page, grid = style.panels(drawn, len(SHOWN), ratio=0.8, above=0.25, labels=labels)
    for panels, (family, rule) in zip(grid, rows, strict=True):
        for ax, quantity in zip(panels, SHOWN, strict=True):
            where = {"site": quantity.site, "stat": quantity.stat}
            _draw(ax, laws.rows_of(slopes, family, rule, **where), looks)
            ax.set_title(quantity.symbol, loc="left")
        panels[0].set_ylabel("local slope")
    for ax in panels:  # of the last row
        ax.set_xlabel("rank / crossover")
    style.legend(page, {f"width {width:g}": look for width, look in looks.items()})
    return style.finish(
        page,
        "Markers: slope of the mean over layers of the log, between neighbouring ranks.",
        sentence_on_ci("Bars", slopes["interval"]),
        "Curve: theory for the mean square over draws, without a fit. Short lines: theory for the "
        "mean of the log over draws, which differs at low rank.",
        on_batch(),
        left_out,
    )


def _draw(ax: Axes, found: pd.DataFrame, looks: Mapping[float, Mapping[str, Any]]) -> None:
    """The slopes of one quantity. ``looks``: by width.

    gids: ``curve``; ``slopes <width>``, ``bars <width>`` and ``theory <width>``.
    """
    ax.set_xscale("log")
    if found.empty:
        return
    along = np.geomspace(found["position"].min() / 1.5, found["position"].max() * 1.5, 97)
    for limit in sorted(set(found["limit"].round(9))):
        ax.plot(along, limit - 0.5 / (1 + along), color=style.INK, linewidth=0.9, gid="curve")
    for width, look in looks.items():
        mine = found[found["width"] == width]
        at, colour = mine["position"], look["color"]
        ax.plot(at, mine["exponent"], **look, zorder=3, gid=f"slopes {width:g}")
        style.bars(ax, at, mine["ci_low"], mine["ci_high"], colour, f"bars {width:g}", zorder=2)
        line: dict[str, Any] = {"color": colour, "linewidth": 0.7, "zorder": 2.5}
        ends = mine["predicted"], at / REACH, at * REACH
        ax.hlines(*ends, gid=f"theory {width:g}", **line)
    style.log_ticks(ax.xaxis, ax.get_xlim())
