"""The page: sizes, fonts, rows of panels, the text below them, and saving.

Page and font sizes are those of tueplots for ICML's two columns. The fonts (STIX, a Times) ship
with matplotlib, so a figure looks the same on every machine and needs no LaTeX.
"""

import io
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import matplotlib.style
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from tueplots import axes, bundles, figsizes

from study.figures.captions import plain, settings, wrapped
from study.figures.style.labels import place_labels
from study.store import write_output

DPI = 300
FULL, HALF = "full", "half"
INK, FAINT = "#222222", "#6b6b6b"
HIGHEST = 8.8
"""Inches: the text of an ICML page is 9 inches high, and a caption needs a line."""

PAPER: dict[str, Any] = {
    **bundles.icml2024(column="full", usetex=False),
    **axes.lines(),
    **axes.spines(top=False, right=False),
    **axes.color(base=INK, face="none"),
    # By name: the class "serif" is resolved when a figure is drawn, perhaps outside of `paper`.
    "font.family": ["STIXGeneral", "DejaVu Sans"],
    "mathtext.fontset": "stix",
    "legend.fontsize": 7,
    "figure.titlesize": 8,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.borderaxespad": 0.0,
    "legend.labelspacing": 0.25,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.labelpad": 2.5,
    "axes.titlepad": 4.0,
    "axes.xmargin": 0.02,
    "lines.linewidth": 0.9,
    "lines.markersize": 3.2,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}


@contextmanager
def paper() -> Iterator[None]:
    """Draw in this style, then restore the caller's rcParams. Works as a decorator too."""
    with matplotlib.style.context(PAPER, after_reset=True):
        yield


def figure(
    nrows: int, ncols: int, *, column: str = FULL, ratio: float, above: float = 0.0
) -> Figure:
    """An empty figure for a grid of panels, as wide as one column (``half``) or two (``full``),
    and at most as high as a page.

    ``ratio``: height of a panel over its width. ``above``: inches for legends and titles.
    """
    size = figsizes.icml2024_full if column == FULL else figsizes.icml2024_half
    width, height = size(nrows=nrows, ncols=ncols, height_to_width_ratio=ratio)["figure.figsize"]
    return Figure(figsize=(width, min(height + above, HIGHEST)), layout=_layout())


def _layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)


def rows(page: Figure, labels: Sequence[str], beside: int = 1) -> list[Any]:
    """One subfigure per label, from top to bottom, with the label as its heading, without formulas.

    ``beside``: how many stand beside each other. A single empty label gives the page itself.
    """
    if list(labels) == [""]:
        return [page]
    grid = page.subfigures(math.ceil(len(labels) / beside), beside, squeeze=False)
    parts = list(grid.flat)[: len(labels)]
    for part, label in zip(parts, labels, strict=True):
        part.suptitle(
            plain(textwrap.fill(label, int(page.get_figwidth() * 15 / beside))),
            x=0.008,
            ha="left",
            fontweight="bold",
        )
    return parts


class HasCells(Protocol):
    """A part of a study, such as a :class:`~study.figures.selection.Family`."""

    @property
    def cells(self) -> pd.DataFrame: ...


def finish(drawn: Figure, *sentences: str, shown: Iterable[HasCells] = ()) -> Figure:
    """Write ``sentences`` below the panels, fix the layout, and place the labels of lines.

    ``shown``: what the figure shows. The settings of its cells are the last line of the text, so
    that a figure cut out of a page still says what it shows, and they are the figure's label, which
    :func:`save` writes as metadata. A layout engine that stays on changes the layout slightly at
    every draw.
    """
    if cells := [part.cells for part in shown]:
        drawn.set_label(settings(pd.concat(cells)))
    width = int(drawn.get_figwidth() * 25)
    text = wrapped(" ".join(s for s in sentences if s), width)
    about = plain(textwrap.fill(str(drawn.get_label()), width))
    if text or about:
        lines = "\n".join(part for part in (text, about) if part)
        drawn.supxlabel(lines, x=0.008, ha="left", fontsize=6.5, color=FAINT, linespacing=1.15)
    drawn.set_layout_engine(_layout())  # also if the figure was finished before
    drawn.draw_without_rendering()
    drawn.set_layout_engine("none")
    place_labels(drawn)
    return drawn


FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "png": ("Description", ("Software",)),
    "pdf": ("Subject", ("CreationDate", "Creator", "Producer")),
    "svg": ("Description", ("Date", "Creator")),
}
"""By format, the fields of its metadata: for the settings, and those that would hold a date or a
version."""
USUAL_FORMATS = ("png", "pdf")


def save(
    drawn: Figure,
    folder: str | Path,
    name: str,
    formats: Sequence[str] = USUAL_FORMATS,
) -> tuple[Path, ...]:
    """Write ``folder/name.png`` and ``folder/name.pdf``, each atomically; fonts are embedded.

    They carry as metadata the settings that :func:`finish` printed. They contain no date and no
    version: equal tables give equal bytes, so git reports a change only if a picture changed.
    ``formats``: some of :data:`FORMATS`.
    """
    about = str(drawn.get_label())
    paths = tuple(Path(folder) / f"{name}.{kind}" for kind in formats)
    with paper(), matplotlib.rc_context({"svg.hashsalt": name}):
        for kind, path in zip(formats, paths, strict=True):
            of_about, undated = FORMATS[kind]
            metadata: dict[str, Any] = {of_about: about} if about else {}
            dpi = DPI if kind == "png" else "figure"
            _write(drawn, path, metadata=metadata | dict.fromkeys(undated), dpi=dpi)
    return paths


def _write(drawn: Figure, path: Path, **options: Any) -> None:
    page = io.BytesIO()
    drawn.savefig(page, format=path.suffix[1:], **options)
    write_output(path, page.getvalue())
