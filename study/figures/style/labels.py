"""Direct labels: the name of a line at its end, in its colour, instead of a legend.

Labels stand in a column on the right of their panel. The axis is extended to make room for them,
and its line ends with the data. :func:`study.figures.style.finish` places them, because their
places depend on the layout.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

MOST_LABELS = 6
"""More labels in a panel would need more shades than a reader can tell apart."""
LABEL = "label "
"""The beginning of a label's gid."""
LABEL_SIZE, LEADER = 7, 9
"""Points: the size of the text, and the length of the line that leads to it."""


def ranks_to_draw(ranks: Sequence[float], most: int = MOST_LABELS) -> list[float]:
    """At most ``most`` of the sorted ``ranks``: the first, the last, and others evenly between.

    Infinite rank is always among them.
    """
    finite = [rank for rank in ranks if np.isfinite(rank)]
    infinite = [rank for rank in ranks if not np.isfinite(rank)]
    most -= len(infinite)
    if len(finite) <= most:
        return list(ranks)
    # Every second or third rank, rather than six at uneven distances.
    even = [n for n in range(most, 3, -1) if (len(finite) - 1) % (n - 1) == 0]
    places = np.linspace(0, len(finite) - 1, even[0] if even else most).round().astype(int)
    return [*(finite[place] for place in places), *infinite]


def on_ranks(drawn: int, every: int) -> str:
    """A sentence on the labels, for the text below the panels."""
    left_out = f" ({drawn} of {every} are drawn)" if drawn < every else ""
    return f"Numbers at the lines: ranks{left_out}."


def label_end(ax: Axes, x: float, y: float, text: str, colour: Any) -> None:
    """Label the line of ``ax`` that ends at (x, y). gid: ``label <text>``."""
    label = ax.annotate(
        text,
        (x, y),
        (1.0, y),
        textcoords=("axes fraction", "data"),
        color=colour,
        fontsize=LABEL_SIZE,
        va="center",
        annotation_clip=False,
        gid=LABEL + text,
        arrowprops={
            "arrowstyle": "-",
            "color": colour,
            "linewidth": 0.5,
            "shrinkA": 1,
            "shrinkB": 1.5,
            "relpos": (0, 0.5),
        },
    )
    label.set_in_layout(False)


def labels_of(ax: Axes) -> list[Annotation]:
    """The labels of the lines of a panel."""
    return [
        text
        for text in ax.texts
        if isinstance(text, Annotation) and str(text.get_gid()).startswith(LABEL)
    ]


def place_labels(page: Figure) -> None:
    """Put the labels of every panel where they do not overlap. The layout must be fixed."""
    labelled = [ax for ax in page.findobj(Axes) if labels_of(ax)]
    if not labelled:
        return
    renderer: Any = FigureCanvasAgg(page).get_renderer()
    # Of the texts alone: an annotation's own extent includes the line that leads to it.
    extents = {ax: [Text.get_window_extent(t, renderer) for t in labels_of(ax)] for ax in labelled}
    width = max(box.width for boxes in extents.values() for box in boxes)
    height = max(box.height for boxes in extents.values() for box in boxes)
    for ax in labelled:
        _make_room(ax, width + LEADER * page.dpi / 72)
    for ax in labelled:
        ax.spines["bottom"].set_bounds(ax.get_xlim()[0], _end(ax))
        _place(ax, width, height)


def _end(ax: Axes) -> float:
    """The largest x of a labelled line, in this panel and in those that share its x axis."""
    beside = ax.get_shared_x_axes().get_siblings(ax)
    return float(max(text.xy[0] for one in beside for text in labels_of(one)))


def _make_room(ax: Axes, room: float) -> None:
    """Extend the x axis until ``room`` pixels are right of the lines."""
    scale = ax.xaxis.get_transform()
    left, right, end = (float(x) for x in scale.transform([*ax.get_xlim(), _end(ax)]))
    extended = left + (end - left) / (1 - room / ax.bbox.width)
    # A panel that shares the axis may have made more room.
    ax.set_xlim(right=float(scale.inverted().transform([max(extended, right)])[0]))


def _place(ax: Axes, width: float, height: float) -> None:
    """Spread the labels of a panel from top to bottom, each as near to its line as possible."""
    labels = sorted(labels_of(ax), key=lambda text: text.xy[1])
    wanted = np.array([ax.transData.transform(text.xy)[1] for text in labels])
    low, high = ax.bbox.y0 + height / 2, ax.bbox.y1 - height / 2
    for text, y in zip(labels, spread(wanted, height, low, high), strict=True):
        text.set_anncoords("axes fraction")
        text.xyann = (1 - width / ax.bbox.width, float((y - ax.bbox.y0) / ax.bbox.height))


def spread(wanted: np.ndarray, apart: float, low: float, high: float) -> np.ndarray:
    """The places nearest to the sorted places ``wanted``, at least ``apart`` from each other.

    Between ``low`` and ``high``, unless they do not fit. Nearest in the sum of squares: an isotonic
    regression (pool adjacent violators) of the places less what their predecessors take.
    """
    before = apart * np.arange(len(wanted))
    pools: list[tuple[float, int]] = []  # mean and size
    for place in wanted - before:
        mean, size = float(place), 1
        while pools and pools[-1][0] > mean:
            other, others = pools.pop()
            mean, size = (mean * size + other * others) / (size + others), size + others
        pools.append((mean, size))
    free = np.concatenate([np.full(size, mean) for mean, size in pools])
    return np.clip(free, low, max(low, high - before[-1])) + before
