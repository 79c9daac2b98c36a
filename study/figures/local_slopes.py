"""Local slopes of random models of several widths, on one curve of rank / crossover."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from study.analysis.predictions import local_slopes
from study.figures import laws, style
from study.figures.captions import on_batch, sentence_on_ci
from study.figures.selection import Absent, Family, Rule, Tables, families, most_varied
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
    if tables.cells.empty or tables.probes.empty:
        raise Absent("no probes in the tables")
    widths = _widths(tables.cells)
    if len(widths) < 2:
        raise Absent(
            "local slopes by width need a study over model.width: sweep model.width=64,256"
        )
    slopes = local_slopes(tables.cells, tables.metrics, tables.probes, SHOWN, STEP)
    same = [name for name in ("width", "model_sha256") if name in tables.cells]
    drawn, left_out = most_varied(families(tables.cells.drop(columns=same)), MOST_ROWS)
    rows = [(family, rule) for family in drawn for rule in family.rules][:MOST_ROWS]
    page, grid = style.panels(_labels(rows), len(SHOWN), ratio=0.8, above=0.25)
    intervals: set[str] = set()
    for panels, (family, rule) in zip(grid, rows, strict=True):
        for ax, quantity in zip(panels, SHOWN, strict=True):
            where = {"site": quantity.site, "stat": quantity.stat}
            found = laws.rows_of(slopes, family, rule, **where)
            intervals |= _draw(ax, found, widths)
            ax.set_title(quantity.symbol, loc="left")
        panels[0].set_ylabel("local slope")
    for ax in panels:  # of the last row
        ax.set_xlabel("rank / crossover")
    handles = [page.axes[0].plot([], [], **_look(width, widths))[0] for width in widths]
    names = [f"width {width:g}" for width in widths]
    page.legend(handles, names, loc="outside upper right", ncols=len(widths))
    return style.finish(
        page,
        "Markers: slope of the mean over layers of the log, between neighbouring ranks.",
        sentence_on_ci("Bars", intervals),
        "Curve: theory for the mean square over draws, without a fit. Short lines: theory for the "
        "mean of the log over draws, which differs at low rank.",
        on_batch(),
        left_out,
        shown=drawn,
    )


def _widths(cells: pd.DataFrame) -> list[float]:
    return sorted(set(cells["width"].dropna())) if "width" in cells else []


def _labels(rows: Sequence[tuple[Family, Rule]]) -> list[str]:
    """The setting and the rule of each row of panels."""
    return [", ".join(filter(None, (family.label, style.name(rule)))) for family, rule in rows]


def _draw(ax: Axes, found: pd.DataFrame, widths: Sequence[float]) -> set[str]:
    """The slopes of one quantity. Return the kinds of their intervals.

    gids: ``curve``; ``slopes <width>``, ``bars <width>`` and ``theory <width>``.
    """
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(style.LogTicks())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: style.decimal(x)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    if found.empty:
        return set()
    span = found["position"].min() / 1.5, found["position"].max() * 1.5
    along = np.geomspace(*span, 97)
    for limit in sorted(set(found["limit"].round(9))):
        ax.plot(along, limit - 0.5 / (1 + along), color=style.INK, linewidth=0.9, gid="curve")
    for width in widths:
        mine = found[found["width"] == width]
        look = _look(width, widths)
        ax.plot(mine["position"], mine["exponent"], **look, zorder=3, gid=f"slopes {width:g}")
        colour, at = look["color"], mine["position"]
        style.bars(ax, at, mine["ci_low"], mine["ci_high"], colour, f"bars {width:g}", zorder=2)
        line = {"color": colour, "linewidth": 0.7, "zorder": 2.5, "gid": f"theory {width:g}"}
        ax.hlines(mine["predicted"], at / REACH, at * REACH, **line)
    return set(found["interval"].astype(str))


def _look(width: float, widths: Sequence[float]) -> dict[str, Any]:
    place = widths.index(width)
    colour = mpl.colormaps["plasma"](0.6 * place / max(len(widths) - 1, 1))
    return {
        "color": colour,
        "marker": MARKERS[place % len(MARKERS)],
        "markersize": 3.4,
        "linestyle": "none",
    }
