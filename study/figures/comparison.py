"""Two or more studies side by side: exponents, losses and their differences."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from study.analysis.compare import EXPONENT, LOSS, Comparison, to_read
from study.analysis.grouping import groups, numbered
from study.errors import printable
from study.figures import style
from study.figures.captions import CI, plain
from study.figures.captions import EXPONENT as SCALING
from study.vocabulary.quantities import METRICS, QUANTITIES

MOST_LINES = 26
"""Lines of a block. Whole curves are left out beyond them, but never the first."""
LINE = 0.15
"""Inches per line."""
MARKERS = ("s", "D", "^", "v", "P", "X")
COLOURS = ("#2b6fc2", "#c2185b", "#8a9a00", "#d9730d", "#6d4c41", "#6a3fc4")
FIRST: dict[str, Any] = {"marker": "o", "color": style.INK}


@style.paper()
def comparison(found: Comparison, first: str) -> Figure:
    """Scaling exponents and losses of studies at their first and last common steps, and the
    differences from the study ``first``. Studies beyond the sixth other one are not drawn."""
    rows = found.rows[found.rows["what"].isin([EXPONENT, LOSS])]
    blocks = [_placed(to_read(block)) for _, block in rows.groupby("what")]
    sizes = [block["y"].max() + 4 for block in blocks]
    page = style.figure(1, 1, ratio=1)
    page.set_size_inches(style.WIDTH[style.FULL], LINE * sum(sizes) + 0.6)
    others = zip(dict.fromkeys(rows["study"]), MARKERS, COLOURS, strict=False)
    looks = {name: {"marker": m, "color": colour} for name, m, colour in others}
    parts = page.subfigures(len(blocks), 1, height_ratios=sizes, squeeze=False)[:, 0]
    for part, block in zip(parts, blocks, strict=True):
        values, differences = part.subplots(1, 2, sharey=True, width_ratios=[1.1, 1])
        _draw(values, differences, block, looks)
        metric = METRICS.get(block["stat"].iloc[0])
        values.set_xlabel(f"{metric.label} ({metric.unit})" if metric else SCALING)
        differences.set_xlabel(f"difference from {plain(printable(first))}")
        differences.xaxis.set_major_locator(MaxNLocator(5))
    dots = {"linestyle": "none", "markersize": 3.6}
    every_look = {first: FIRST, **looks}.items()
    style.legend(page, {plain(printable(name)): look | dots for name, look in every_look})
    differing = plain(printable(", ".join(found.settings["setting"]), 400))
    paired = {True: "of differences: paired by seed", False: "of differences: Welch's"}
    bars = "; ".join([f"Bars: {CI} over seeds", *(paired[one] for one in rows["paired"].unique())])
    drawn, every = len(set().union(*(block["curve"] for block in blocks))), rows["curve"].nunique()
    return style.finish(
        page,
        f"{bars}.",
        f"Settings that differ: {differing}." if differing else "",
        f"{drawn} of {every} curves are drawn." if drawn < every else "",
    )


def _placed(rows: pd.DataFrame) -> pd.DataFrame:
    """``rows`` with their line ``y`` and its ``text``, below the line of their curve, ``head``."""
    nouns = {quantity.label: f"{quantity.noun}, " for quantity in QUANTITIES}
    rank = rows["line"].str.partition(", rank ")[2]
    text = rows["quantity"].map(nouns).fillna("") + rank.where(rank == "", "rank " + rank + ", ")
    rows = rows.assign(text=text + "step " + rows["steps"])
    parts, place = [], 0
    for curve in groups(rows, ["curve"]):
        line = numbered(curve, ["text"])
        if not place or place + line.max() + 2 <= MOST_LINES:
            parts.append(curve.assign(head=place, y=place + 1 + line))
            place += int(line.max()) + 2
    return pd.concat(parts)


def _draw(values: Axes, differences: Axes, rows: pd.DataFrame, looks: dict[str, Any]) -> None:
    """The two panels of a block. gids: ``first``, ``<study>``, ``difference <study>``."""
    heads = rows.drop_duplicates("head")[["head", "curve"]].to_numpy()
    ticks = [*heads, *rows.drop_duplicates("y")[["y", "text"]].to_numpy()]
    values.set_yticks([y for y, _ in ticks], [plain(printable(text, 90)) for _, text in ticks])
    for tick in values.get_yticklabels()[: len(heads)]:
        tick.set_fontweight("bold")
    apart = 0.5 / (len(looks) + 1)
    drawn: list[tuple[Any, ...]] = [
        (values, rows.drop_duplicates("y"), "value low high", FIRST, "first", 0.0)
    ]
    for n, (name, look) in enumerate(looks.items()):
        own = rows[rows["study"] == name]
        drawn += [
            (values, own, "other other_low other_high", look, name, (n + 1) * apart),
            (differences, own, "difference ci_low ci_high", look, f"difference {name}", n * apart),
        ]
    for ax, own, names, look, gid, below in drawn:
        centre, low, high = (own[name] for name in names.split())
        ax.hlines(own["y"] + below, low, high, color=look["color"], linewidth=0.8)
        ax.plot(centre, own["y"] + below, **look, markersize=3.2, linestyle="none", gid=gid)
    differences.axvline(0, color=style.FAINT, linewidth=0.6, zorder=1)
    for ax in (values, differences):
        ax.set_ylim(rows["y"].max() + 0.8, -0.7)
        ax.tick_params(axis="y", length=0)
