"""The style of every figure.

- :mod:`~study.figures.style.page`: sizes, fonts, panels, the text below them, and saving;
- :mod:`~study.figures.style.looks`: colours, markers and names of rules, ranks and quantities;
- :mod:`~study.figures.style.axes`: axes and numbers;
- :mod:`~study.figures.style.labels`: the names of lines, at their ends.
"""

from study.figures.style.axes import (
    decimal,
    hide,
    legend_above,
    linear_axis,
    log_axis,
    number,
    rank_axis,
    rank_name,
    y_label,
)
from study.figures.style.labels import MOST_LABELS, label_end, on_ranks, ranks_to_draw
from study.figures.style.looks import (
    CONTEXT,
    CROSS,
    DASHED,
    DOTTED,
    RGBA,
    Look,
    gid,
    heading,
    lightness,
    marker,
    name,
    quantity_look,
    rule_look,
    shade,
    tint,
    title,
)
from study.figures.style.page import (
    DPI,
    FAINT,
    FULL,
    HALF,
    INK,
    PAPER,
    figure,
    finish,
    paper,
    rows,
    save,
)

__all__ = [
    "CONTEXT",
    "CROSS",
    "DASHED",
    "DOTTED",
    "DPI",
    "FAINT",
    "FULL",
    "HALF",
    "INK",
    "MOST_LABELS",
    "PAPER",
    "RGBA",
    "Look",
    "decimal",
    "figure",
    "finish",
    "gid",
    "heading",
    "hide",
    "label_end",
    "legend_above",
    "lightness",
    "linear_axis",
    "log_axis",
    "marker",
    "name",
    "number",
    "on_ranks",
    "paper",
    "quantity_look",
    "rank_axis",
    "rank_name",
    "ranks_to_draw",
    "rows",
    "rule_look",
    "save",
    "shade",
    "tint",
    "title",
    "y_label",
]
