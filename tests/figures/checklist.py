"""What every figure must be: legible, without overlaps. ``problems`` lists failures.

The checks measure a drawn figure: boxes are the renderer's window extents.
"""

import re
from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from study.figures import style

Named = tuple[str, Any, Bbox]
"""What has a box: in words, its owner, and the box."""


def problems(figure: Figure) -> list[str]:
    """Everything that makes ``figure`` hard to read, in words; empty if nothing does."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    texts = [
        (repr(text.get_text()), owner, _glyphs(text, renderer))
        for text, owner in _visible_texts(figure)
    ]
    found = [f"{a[0]} on {b[0]}" for a, b in _overlaps(texts, texts) if a[2] is not b[2]]
    found += text_outside(figure, texts, renderer)
    found += text_on_panels(figure, texts, renderer)
    return found + shown_markup(figure)


def text_outside(figure: Figure, texts: list[Named], renderer: Any) -> list[str]:
    """Text off the page, or text of the data area outside of its panel."""
    page = figure.bbox.padded(1)
    found = [f"{name} off the page" for name, _, box in texts if not _within(box, page)]
    for ax in _axes(figure):
        panel = ax.get_window_extent(renderer).padded(1)
        beside = [text for text in ax.texts if str(text.get_gid()).startswith(style.LABEL)]
        shown = [text for text in _shown(ax.texts) if text not in beside]
        inside = [(text, _glyphs(text, renderer)) for text in shown]
        off = [text for text, box in inside if not _within(box, panel)]
        found += [f"{text.get_text()!r} outside of its panel" for text in off]
    return found


def text_on_panels(figure: Figure, texts: list[Named], renderer: Any) -> list[str]:
    """A tick label, an axis label or a title that reaches into a panel; a legend on anything."""
    axes = [ax for ax in _axes(figure) if ax.axison]
    panels = [("a panel", ax, ax.get_window_extent(renderer)) for ax in axes]
    legends: list[Named] = [
        ("a legend", legend, legend.get_window_extent(renderer))
        for legend in figure.findobj(Legend)
    ]
    of_axes = [text for text in texts if isinstance(text[1], Axes)]
    inner = [(name, ax, panel.padded(-1)) for name, ax, panel in panels]
    pairs = [*_overlaps(of_axes, inner), *_overlaps(legends, panels)]
    pairs += [pair for pair in _overlaps(texts, legends) if pair[0][1] is not pair[1][1]]
    for boxes in (legends, panels):
        pairs += [pair for pair in _overlaps(boxes, boxes) if pair[0] is not pair[1]]
    return [f"{a[0]} on {b[0]}" for a, b in pairs]


def shown_markup(figure: Figure) -> list[str]:
    """A dollar that a line break cut off its formula, so that the page shows TeX."""
    texts = [text for text, _ in _visible_texts(figure) if text.get_parse_math()]
    cut = [t for t in texts if len(re.findall(r"(?<!\\)\$", t.get_text())) % 2]
    return [f"{text.get_text()!r} shows its markup" for text in cut]


def _overlaps(some: list[Named], others: list[Named]) -> list[tuple[Named, Named]]:
    """The pairs whose boxes overlap."""
    if not some or not others:
        return []
    a, b = (np.array([[*box.min, *box.max] for *_, box in boxes]) for boxes in (some, others))
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    pairs = np.argwhere((low <= high).all(axis=2))
    return [(some[n], others[m]) for n, m in pairs]


def _glyphs(text: Text, renderer: Any) -> Bbox:
    """The box of a text without what leads to it, such as the line of an annotation."""
    # Half a point of tolerance: the box includes the side bearings of glyphs.
    box = Text.get_window_extent(text, renderer)
    return box.padded(-0.5 * text.get_figure(root=True).dpi / 72)


def _within(box: Bbox, area: Bbox) -> bool:
    return area.contains(box.x0, box.y0) and area.contains(box.x1, box.y1)


def _axes(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.findobj(Axes) if ax.get_visible()]


def _shown(texts: Any) -> Iterator[Text]:
    return (text for text in texts if text.get_visible() and text.get_text().strip())


def _visible_texts(figure: Figure) -> list[tuple[Text, Any]]:
    """Every visible text with its owner: axes, a legend, "inside" or None for the figure."""
    found: list[tuple[Text, Any]] = []
    for ax in _axes(figure):
        for axis in (ax.xaxis, ax.yaxis):
            found += [(text, ax) for text in _tick_labels(axis)]
            found += [(axis.label, ax), (axis.get_offset_text(), ax)]
        found += [(text, ax) for text in (ax.title, ax._left_title, ax._right_title)]
        found += [(text, "inside") for text in ax.texts]
    for legend in figure.findobj(Legend):
        found += [(text, legend) for text in (*legend.get_texts(), legend.get_title())]
    for part in [figure, *figure.subfigs]:
        found += [(text, None) for text in part.texts]
    shown = {id(text) for text in _shown(text for text, _ in found)}
    return [(text, owner) for text, owner in found if id(text) in shown]


def _tick_labels(axis: matplotlib.axis.Axis) -> list[Text]:
    low, high = sorted(axis.get_view_interval())
    slack = 1e-9 * (high - low)
    ticks = [
        tick
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        if low - slack <= tick.get_loc() <= high + slack
    ]
    return [
        label
        for tick in ticks
        for label in (tick.label1, tick.label2)
        if tick.get_visible() and label.get_visible()
    ]
