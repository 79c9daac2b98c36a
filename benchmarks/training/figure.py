"""The figure of the training benchmark."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.figures import style
from study.vocabulary.sources import model_label

from .labels import LABELS
from .summary import medians, processor

LOOKS = {"trainer": ("#7a7a7a", "s"), "loop": ("#b0602b", "o"), "packed": ("#1f7f86", "D")}
"""The ways that are drawn, with their colour and marker."""


def speed(sweep: pd.DataFrame, large: pd.DataFrame | None) -> Figure:
    """Seconds of a step against rank: a panel for each step size, a line for each way."""
    parts = [("1024", sweep)] + ([("4096", large)] if large is not None else [])
    with style.paper():
        column = style.FULL if len(parts) > 1 else style.HALF
        page = style.figure(1, len(parts), column=column, ratio=0.7, above=0.2)
        panels = page.subplots(1, len(parts), squeeze=False)[0]
        for panel, (tokens, table) in zip(panels, parts, strict=True):
            _draw(panel, table, inches=page.get_figwidth() / len(parts) - 0.5)
            panel.set_title(f"{tokens} tokens per step, {processor(table)}", loc="left")
        handles, names = panels[0].get_legend_handles_labels()
        page.legend(handles, names, loc="outside upper left", ncols=len(names))
        page.set_label(_settings(pd.concat([table for _, table in parts])))
        return style.finish(page, "Points: medians over the steps of a run after the first.")


def _settings(rows: pd.DataFrame) -> str:
    """What was timed, as the last line of the figure."""
    model, precision = (", ".join(map(str, rows[name].unique())) for name in ("model", "precision"))
    return f"{model_label(model)}, {precision}"


def _draw(panel: Axes, table: pd.DataFrame, inches: float) -> None:
    """A line per way. ``inches``: the width of the panel."""
    found = medians(table, "rank")
    for way, (colour, marker) in LOOKS.items():
        if way in found:
            look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 3.5}
            panel.plot(found.index, found[way], label=LABELS[way], **look)
    style.rank_axis(panel, [float(rank) for rank in found.index], inches)
    style.log_axis([panel])
    panel.set_ylabel("seconds per step")
