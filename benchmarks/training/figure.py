"""The figure of the training benchmark."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from study.figures import style
from study.vocabulary.sources import model_label

from .labels import LABELS
from .summary import medians

LOOKS = {"trainer": ("#8a8a8a", "s"), "loop": ("#b0602b", "o"), "packed": ("#1f7f86", "D")}
"""The ways that are drawn, with their colour and marker."""
TICKS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200)


def speed(sweep: pd.DataFrame, large: pd.DataFrame | None) -> Figure:
    """Seconds of a step against rank: a panel for each step size, a line for each way."""
    parts = [("1024", sweep)] + ([("4096", large)] if large is not None else [])
    with style.paper():
        page = style.figure(1, 2, column=style.FULL, ratio=0.75)
        panels = page.subplots(1, 2, squeeze=False)[0]
        for panel, (tokens, table) in zip(panels, parts, strict=False):
            _draw(panel, table)
            panel.set_title(f"{tokens} tokens per step")
        panels[0].legend(loc="upper left")
        for panel in panels[len(parts) :]:
            panel.set_axis_off()
        page.set_label(_settings([table for _, table in parts]))
        return style.finish(page, "Points: medians over the steps of a run after the first.")


def _settings(tables: list[pd.DataFrame]) -> str:
    """What was timed and on what, as the last line of the figure."""
    rows = pd.concat(tables)
    told = [", ".join(map(str, rows[name].unique())) for name in ("model", "precision", "device")]
    return ", ".join([model_label(told[0]), *told[1:]])


def _draw(panel: Axes, table: pd.DataFrame) -> None:
    found = medians(table, "rank")
    for way, (colour, marker) in LOOKS.items():
        if way in found:
            look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 3.5}
            panel.plot(found.index, found[way], label=LABELS[way], **look)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    ranks = list(found.index)
    panel.set_xticks(ranks, [str(rank) for rank in ranks])
    panel.xaxis.set_minor_locator(NullLocator())
    low, high = panel.get_ylim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    panel.set_yticks(ticks, [str(tick) for tick in ticks])
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("rank")
    panel.set_ylabel("seconds per step")
