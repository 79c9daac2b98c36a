"""What every figure must be: legible, without overlaps. ``problems`` lists failures.

The checks measure a drawn figure: boxes are the renderer's window extents.
"""

import re
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def problems(figure: Figure) -> list[str]:
    """Everything that makes ``figure`` hard to read, in words; empty if nothing does."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    return [found for check in CHECKS for found in check(figure, renderer)]


def text_overlaps(figure: Figure, renderer: Any) -> Iterator[str]:
    """Text on text."""
    for (a, _, x), (b, _, y) in combinations(_text_boxes(figure, renderer), 2):
        if x.overlaps(y):
            yield f"{a} on {b}"


def text_outside(figure: Figure, renderer: Any) -> Iterator[str]:
    """Text off the page, or text of the data area outside of its panel."""
    page = figure.bbox.padded(1)
    for name, _, box in _text_boxes(figure, renderer):
        if not _within(box, page):
            yield f"{name} off the page"
    for ax in _axes(figure):
        panel = ax.get_window_extent(renderer).padded(1)
        for text in _shown(ax.texts):
            if not _within(_glyphs(text, renderer), panel):
                yield f"{text.get_text()!r} outside of its panel"


def text_on_panels(figure: Figure, renderer: Any) -> Iterator[str]:
    """A tick label, an axis label or a title that reaches into a panel; a legend on anything."""
    panels = [ax for ax in _axes(figure) if ax.axison]
    texts = _text_boxes(figure, renderer)
    for name, owner, box in texts:
        if isinstance(owner, Axes):
            for ax in panels:
                if ax.get_window_extent(renderer).padded(-1).overlaps(box):
                    yield f"{name} on a panel"
    frames = [legend.get_window_extent(renderer) for legend in figure.findobj(Legend)]
    for legend, frame in zip(figure.findobj(Legend), frames, strict=True):
        for name, owner, box in texts:
            if owner is not legend and box.overlaps(frame):
                yield f"{name} on a legend"
        for ax in panels:
            if ax.get_window_extent(renderer).overlaps(frame):
                yield "a legend on a panel"
    if any(x.overlaps(y) for x, y in combinations(frames, 2)):
        yield "a legend on a legend"
    for a, b in combinations(panels, 2):
        if a.get_window_extent(renderer).overlaps(b.get_window_extent(renderer)):
            yield "panels overlap"


def shown_markup(figure: Figure, renderer: Any) -> Iterator[str]:
    """A dollar that a line break cut off its formula, so that the page shows TeX."""
    for text, _ in _visible_texts(figure):
        if len(re.findall(r"(?<!\\)\$", text.get_text())) % 2 and text.get_parse_math():
            yield f"{text.get_text()!r} shows its markup"


CHECKS: tuple[Callable[[Figure, Any], Iterator[str]], ...] = (
    text_overlaps,
    text_outside,
    text_on_panels,
    shown_markup,
)


def _text_boxes(figure: Figure, renderer: Any) -> list[tuple[str, Any, Bbox]]:
    return [
        (repr(text.get_text()), owner, _glyphs(text, renderer))
        for text, owner in _visible_texts(figure)
    ]


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
