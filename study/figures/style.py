"""The style of every figure: the page, its panels and texts, looks, axes, and labels of lines.

Page and font sizes are those of tueplots for ICML's two columns. The fonts (STIX, a Times) ship
with matplotlib, so a figure looks the same on every machine and needs no LaTeX.

A rule has a marker and one of matplotlib's sequential colour maps, which is darker at a higher
rank: in a grey print the lightness still shows the rank, and the marker or the panel the rule.

Lines are labelled in a column right of their panel, in their colours, instead of in a legend.
:func:`finish` keeps the labels apart, because their places depend on the layout.
"""

import io
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from scipy.optimize import isotonic_regression
from tueplots import axes, bundles

from study.analysis.wording import interval_text, rounded, settings
from study.figures.captions import plain, wrapped
from study.figures.selection import DrawnRule, Family
from study.store import write_output
from study.vocabulary.scaling import FRACTIONS, RULES, rule_formula, rule_label

T = TypeVar("T")

# ---- page

DPI = 300
FULL, HALF = "full", "half"
WIDTH = {FULL: 6.75, HALF: 3.25}
"""Inches: two columns of an ICML page, and one."""
HIGHEST = 8.8
"""Inches: the text of an ICML page is 9 inches high, and a caption needs a line."""
INK, FAINT = "#222222", "#6b6b6b"

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


paper = partial(matplotlib.style.context, PAPER, after_reset=True)
"""``paper()``: draw in this style, then restore the caller's rcParams. Works as a decorator too."""


def _layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)


def figure(
    nrows: int, ncols: int, *, column: str = FULL, ratio: float, above: float = 0.0
) -> Figure:
    """An empty figure as wide as one column (``half``) or two (``full``). ``ratio``: height of a
    panel over its width. ``above``: inches for legends and titles."""
    height = WIDTH[column] / ncols * nrows * ratio + above
    return Figure(figsize=(WIDTH[column], min(height, HIGHEST)), layout=_layout())


def panels(
    shown: Sequence[Family],
    columns: int,
    *,
    ratio: float,
    above: float | None = None,
    column: str = "",
    labels: Sequence[str] | None = None,
    beside: int = 1,
    lines: int = 1,
    **shared: Any,
) -> tuple[Figure, list[np.ndarray]]:
    """A page with ``columns`` panels for each of ``shown``, headed by its label if it has one.

    :func:`finish` prints the settings of the cells shown below the panels. Returns the page and
    the panels of each: ``[columns]``, or ``[lines, columns]`` if it has several ``lines`` of them.
    A line shares its y axis.

    - ``column``: by default the page is as wide as two columns if panels are next to each other;
    - ``labels``: by default those of ``shown``. Several rows may belong to one setting;
    - ``beside``: how many of ``shown`` are in a row;
    - ``above``: inches for legends and headings; by default room for the headings;
    - ``shared``: options of ``subplots``. For ``ratio`` see :func:`figure`.
    """
    labels = [one.label for one in shown] if labels is None else labels
    across, down = columns * beside, math.ceil(len(labels) / beside)
    if above is None:
        above = 0.3 + (0.35 * len(labels) if len(labels) > 1 else 0)
    width = column or (FULL if across > 1 else HALF)
    page = figure(down * lines, across, column=width, ratio=ratio, above=above)
    page.set_label(settings(pd.concat([one.cells for one in shown])))
    parts: list[Any] = [page]
    if list(labels) != [""]:
        parts = list(page.subfigures(down, beside, squeeze=False).flat)[: len(labels)]
        for part, label in zip(parts, labels, strict=True):
            text = plain(textwrap.fill(label, int(page.get_figwidth() * 15 / beside)))
            part.suptitle(text, x=0.008, ha="left", fontweight="bold")
    options: dict[str, Any] = {"sharey": "row", "squeeze": False, **shared}
    grid = [part.subplots(lines, columns, **options) for part in parts]
    return page, grid if lines > 1 else [row for (row,) in grid]


def each(row: np.ndarray, things: Iterable[T]) -> list[tuple[Axes, T]]:
    """The first panels of a row with the ``things`` that they show; the others are hidden."""
    shown = list(zip(row, things, strict=False))
    for ax in row[len(shown) :]:
        ax.set_visible(False)
    return shown


def with_rows(low: float, high: float, rows: int) -> tuple[float, float]:
    """Limits of a y axis that leave space for rows of marks (:func:`best_mark`) below ``low``."""
    share = ROW * (rows + 1)
    return low - share / (1 - share) * (high - low), high


def best_mark(ax: Axes, lr: float, row: int, colour: Any, **look: Any) -> None:
    """A mark at a best learning rate, in a row of its own; row 0 is the lowest."""
    at: dict[str, Any] = {"marker": "D", "markersize": 4, "transform": ax.get_xaxis_transform()}
    ax.plot([lr], [ROW * (row + 1)], color=colour, zorder=4, **at, **look)


def band(
    ax: Axes, x: Any, low: Any, high: Any, colour: Any, gid: str, alpha: float = 0.2, **more: Any
) -> None:
    options: dict[str, Any] = {"color": colour, "alpha": alpha, "linewidth": 0, "gid": gid, **more}
    ax.fill_between(x, low, high, **options)


def legend(
    page: Figure,
    looks: Mapping[str, Mapping[str, Any]],
    columns: int = 0,
    loc: Any = "outside upper right",
) -> None:
    """A legend in a corner of the page: by name, the look of its line."""
    lines = [Line2D([], [], **look) for look in looks.values()]
    page.legend(lines, list(looks), loc=loc, ncols=columns or len(lines))


def finish(drawn: Figure, *sentences: str) -> Figure:
    """Write ``sentences`` and the settings of the cells below the panels, fix the layout, and place
    the labels of lines."""
    width = int(drawn.get_figwidth() * 25)
    text = wrapped(" ".join(filter(None, sentences)), width)
    about = plain(textwrap.fill(str(drawn.get_label()), width))
    if lines := "\n".join(filter(None, (text, about))):
        drawn.supxlabel(lines, x=0.008, ha="left", fontsize=6.5, color=FAINT, linespacing=1.15)
    _layout().execute(drawn)
    drawn.set_layout_engine("none")
    _keep_labels_apart(drawn)
    return drawn


FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "png": ("Description", ("Software",)),
    "pdf": ("Subject", ("CreationDate", "Creator", "Producer")),
    "svg": ("Description", ("Date", "Creator")),
}
"""By format, the fields of its metadata: for the settings, and those that would hold a date or a
version."""


def save(
    drawn: Figure, folder: str | Path, name: str, formats: Sequence[str] = ("png", "pdf")
) -> tuple[Path, ...]:
    """Write ``folder/name.png`` and ``folder/name.pdf``, each atomically; fonts are embedded.

    Their metadata has the settings that :func:`finish` printed, and no date or version. So equal
    tables give equal bytes, and git reports a change only if a picture changed. ``formats``: some
    of :data:`FORMATS`.
    """
    about = str(drawn.get_label())
    paths = []
    with paper(), matplotlib.rc_context({"svg.hashsalt": name}):
        for kind in formats:
            of_about, undated = FORMATS[kind]
            metadata = ({of_about: about} if about else {}) | dict.fromkeys(undated)
            page = io.BytesIO()
            dpi: Any = DPI if kind == "png" else "figure"
            drawn.savefig(page, format=kind, metadata=metadata, dpi=dpi)
            paths.append(Path(folder) / f"{name}.{kind}")
            write_output(paths[-1], page.getvalue())
    return tuple(paths)


# ---- looks

RGBA = tuple[float, float, float, float]

NARROW = 0.02
"""The width of an interval below which it is written with three digits."""
DOTTED, DASHED = (0, (0.8, 2.2)), (0, (4, 2))
"""Line styles: a predicted exponent; a predicted curve or a threshold."""
CONTEXT = "#8c8c8c"
"""The colour of parts that a panel shows only for comparison."""
CROSS: dict[str, Any] = {
    "marker": "x",
    "markersize": 4.5,
    "markeredgewidth": 1.1,
    "linestyle": "none",
    "clip_on": False,
    "zorder": 5,
}
"""Marks a diverged run."""
THEORY: dict[str, Any] = {"color": INK, "linestyle": DASHED, "linewidth": 0.9, "zorder": 3.5}
"""A predicted curve."""
PREDICTED: dict[str, Any] = {"color": INK, "linestyle": DOTTED, "zorder": 3.2}
"""A predicted exponent."""
DOTS: dict[str, Any] = {"marker": "o", "markersize": 1.8}
"""On a line: where it was measured."""
LARGE: dict[str, Any] = {
    "markersize": 5,
    "markeredgecolor": INK,
    "markeredgewidth": 0.7,
    "zorder": 4,
}
"""The marker of the best or of the whole run, on a line."""
ROW = 0.05
"""The distance of two rows of marks at the bottom of a panel, in heights of the panel."""
HOLLOW: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 0.8, "linestyle": "none"}
"""Transparent points."""


class Look(NamedTuple):
    """The look of a rule. ``shades``: colours from light to dark. ``marker``: matplotlib's."""

    shades: Colormap
    marker: str


LOOKS = tuple(
    Look(ListedColormap(matplotlib.colormaps[name](np.linspace(*part, 256))), marker)
    for name, part, marker in (
        *(("copper_r", (0.1, 0.9), "o"), ("GnBu", (0.5, 1.0), "s"), ("Purples", (0.4, 1.0), "^")),
        *(("YlGn", (0.5, 1.0), "*"), ("RdPu", (0.4, 1.0), "X")),
    )
)
"""In the order of :data:`~study.vocabulary.scaling.RULES`, again from the start if there are more
rules."""
ON_WHITE = 1 / 3
"""The first part of a colour map is for dark pages. From here on, where the lightness is 60, its
colours have a contrast of at least 3:1 against white (WCAG 2.2, criterion 1.4.11)."""
MIDDLE = 0.36
"""The place of a single colour of a rule among those that are legible on white."""
POWER_MARKERS = "^vD<>pPh"
"""For several numbers of one rule in a panel: the hue shows the rule, the marker its number."""
QUANTITY_LOOKS = (
    *((INK, "o"), ("#c2185b", "D"), ("#2b6fc2", "^"), ("#8a9a00", "v")),
    *(("#d9730d", "s"), ("#6d4c41", "P")),
)
"""Colour and marker in the order of the primary quantities. The hues differ from the rules'."""


def rule_look(scaling: str) -> Look:
    return LOOKS[list(RULES).index(scaling) % len(LOOKS)]


def name(rule: DrawnRule) -> str:
    """``LoRA``, ``rsLoRA``, ``power p = 0.75``."""
    return rule_label(rule.scaling, rule.number, rule.number)


def gid(rule: DrawnRule) -> str:
    """The identifier of a rule in the gids of artists, which tests and SVG files read."""
    return f"{rule.scaling} {rule.letter}={rule.number:g}"


def title(rule: DrawnRule, lines: int = 1) -> str:
    """The heading of a panel, on one line or two: the rule and its gamma."""
    label = RULES[rule.scaling].label + ("\n" if lines > 1 else "   ")
    if RULES[rule.scaling].over_alpha is not None:
        return (label + rule_formula(rule.scaling, rule.p, rule.number)).strip()
    power = FRACTIONS.get(rule.number, f"{rule.number:g}")
    exponent = f"-{power}" if rule.number > 0 else f"{0 - rule.number:g}"
    return label + rf"$\gamma = \alpha\, r^{{{exponent}}}$"


def heading(ax: Axes, rule: DrawnRule, columns: int) -> None:
    """Head one of ``columns`` panels with its rule, in the rule's colour."""
    text = title(rule, lines=1 if columns < 4 else 2)
    ax.set_title(text, color=look(rule, [rule])["color"], linespacing=1.0)


def look(rule: DrawnRule, beside: Sequence[DrawnRule]) -> dict[str, Any]:
    """The one colour of a rule and its marker. Several exponents of one rule take shades and
    markers."""
    peers = [r for r in beside if r.scaling == rule.scaling]
    own = rule_look(rule.scaling)
    if len(peers) < 2:
        return {"color": _on_white(rule, MIDDLE), "marker": own.marker}
    place = peers.index(rule)
    colour = _on_white(rule, 0.9 * place / (len(peers) - 1))
    return {"color": colour, "marker": POWER_MARKERS[place % len(POWER_MARKERS)]}


def shade(rule: DrawnRule, rank: float, ranks: Sequence[float], *, dark: bool = False) -> RGBA:
    """The colour of one rank among ``ranks`` on white: light is low, and infinite rank is ink. On a
    ``dark`` page low is dark, and infinite rank is white."""
    if math.isinf(rank):
        return matplotlib.colors.to_rgba("white" if dark else INK)
    finite = [math.log(r) for r in ranks if math.isfinite(r)]
    low, high = min(finite), max(finite)
    at = MIDDLE if low == high else (math.log(rank) - low) / (high - low)
    return rule_look(rule.scaling).shades(0.62 * (1 - at)) if dark else _on_white(rule, at)


def _on_white(rule: DrawnRule, at: float) -> RGBA:
    """The colour at ``at``, from 0 (light) to 1, of those that are legible on white paper."""
    return rule_look(rule.scaling).shades(ON_WHITE + at * (1 - ON_WHITE))


# ---- axes and numbers

TICK_INCHES = 0.3
"""Width of a four-digit tick label and a gap."""
FEWEST_TICKS, MOST_TICKS = 3, 8


def y_axis(
    panels: Sequence[Axes] | np.ndarray, quantity: str, unit: str = "", *, log: bool = False
) -> None:
    """Label the y axis that ``panels`` share, with about five ticks; ``unit`` on a second line."""
    panels[0].set_ylabel(f"{quantity}\n{unit}" if unit else quantity, linespacing=1.15)
    if log:
        for ax in panels:
            ax.set_yscale("log")
        log_ticks(panels[0].yaxis, panels[0].get_ylim())
    else:
        # Matplotlib's own default reads the size of labels from the rcParams at every draw.
        panels[0].yaxis.set_major_locator(
            ticker.MaxNLocator(5, steps=[1, 2, 5, 10], min_n_ticks=FEWEST_TICKS)
        )


def number(value: float, digits: int = 2) -> str:
    """A number with a true minus sign, and without a sign if it rounds to 0."""
    return rounded(value, digits).replace("-", "−")


def interval(value: float, low: float, high: float, *, most: int = 3) -> str:
    """``0.50 [0.49, 0.52]``; with three digits, or at ``most``, if the interval is narrow."""
    digits = min(most, 3) if high - low < NARROW else 2
    return interval_text(value, low, high, digits).replace("-", "−")


def rank_name(rank: float) -> str:
    """``∞``, ``512``, or a power of two if the rank has five digits."""
    if math.isinf(rank):
        return "∞"
    power = math.log2(rank)
    return f"$2^{{{power:.0f}}}$" if rank > 9999 and power.is_integer() else f"{rank:.7g}"


def rank_axis(ax: Axes, ranks: Sequence[float], inches: float) -> None:
    """A logarithmic axis ``inches`` long with a tick at every rank of the study."""
    ax.set_xlabel("rank $r$")
    _trained_axis(ax, ranks, inches, rank_name)


def rate_axis(ax: Axes, rates: Sequence[float], inches: float) -> None:
    """A logarithmic axis with a tick at every trained rate or, if they are many, each decade."""
    _trained_axis(ax, rates, inches, _rate_name)
    if len(rates) > MOST_TICKS:
        log_ticks(ax.xaxis, (rates[0], rates[-1]))


def _rate_name(rate: float) -> str:
    """``0.0005``, ``3 × 10⁻⁵`` as a formula."""
    digits, _, power = f"{rate:.3g}".partition("e")
    times = "" if digits == "1" else rf"{digits} \times "
    return rf"${times}10^{{{int(power)}}}$" if power else digits


def _trained_axis(
    ax: Axes, values: Sequence[float], inches: float, name_of: Callable[[float], str]
) -> None:
    """A logarithmic axis with a tick at every value. As many ticks are labelled as fit."""
    ax.set_xscale("log", base=2)
    span = math.log(values[-1] / values[0]) or math.log(2)
    longest = max(len(f"{value:.3g}") for value in values)
    apart = TICK_INCHES * max(1.0, longest / 4) * span / inches
    labelled: list[float] = []
    for value in values:
        if not labelled or math.log(value / labelled[-1]) >= apart:
            labelled.append(value)
    if values[-1] not in labelled and len(labelled) > FEWEST_TICKS:
        labelled[-1] = values[-1]  # the highest rather than the one before it
    ax.xaxis.set_major_locator(ticker.FixedLocator(labelled))
    ax.xaxis.set_major_formatter(lambda value, _: name_of(value))
    ax.xaxis.set_minor_locator(ticker.FixedLocator([one for one in values if one not in labelled]))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    ax.set_xlim(values[0] * math.exp(-0.06 * span), values[-1] * math.exp(0.06 * span))


def log_ticks(axis: Axis, ends: tuple[float, float]) -> None:
    """Label a logarithmic axis: each decade or, if it is short, more of it."""
    low, high = ends
    decades = math.log10(high / low)
    subs = (1.0,) if decades > 2.5 else (1.0, 3.0) if decades > 1.3 else (1.0, 2.0, 5.0)
    logs = ticker.LogLocator(subs=subs, numticks=7)
    axis.set_major_locator(logs if decades > 0.6 else ticker.MaxNLocator(4))
    short = low >= 1e-4 and high <= 1e4
    powers = ticker.LogFormatterSciNotation(minor_thresholds=(math.inf, math.inf))
    axis.set_major_formatter((lambda tick, _: f"{tick:g}") if short else powers)
    axis.set_minor_locator(ticker.NullLocator())


def step_axis(ax: Axes, steps: np.ndarray) -> None:
    """The axis of optimizer steps: logarithmic if half of the steps are in the first quarter of a
    long run, else linear."""
    ax.set_xlabel("optimizer step")
    last = max(int(steps.max()), 1)
    if last <= 64 or np.median(np.unique(steps)) > last / 4:
        ax.xaxis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
        return
    ax.set_xscale("symlog", linthresh=1, linscale=0.3)
    ax.xaxis.set_major_formatter(lambda step, _: f"{step:g}")
    ax.set_xlim(-0.1, last * 1.15)


# ---- labels of lines

MOST_LABELS = 6
"""More labels in a panel would need more shades than a reader can distinguish."""
LABEL = "label "
"""The beginning of a label's gid."""
LABEL_HEIGHT = 7.5
"""Points between two labels."""


def ranks_to_draw(ranks: Sequence[float]) -> list[float]:
    """At most :data:`MOST_LABELS` of the sorted ``ranks``: first, last, infinite, and others evenly
    between."""
    finite = [rank for rank in ranks if np.isfinite(rank)]
    infinite = [rank for rank in ranks if not np.isfinite(rank)]
    most = MOST_LABELS - len(infinite)
    if len(finite) <= most:
        return list(ranks)
    # Every second or third rank, rather than six at uneven distances.
    even = [n for n in range(most, 3, -1) if (len(finite) - 1) % (n - 1) == 0]
    places = np.linspace(0, len(finite) - 1, even[0] if even else most).round().astype(int)
    return [*(finite[place] for place in places), *infinite]


def on_ranks(ranks: Iterable[Sequence[float]]) -> str:
    """A sentence on the labels, for the text below the panels. ``ranks``: those of each row."""
    drawn, every = max((len(ranks_to_draw(one)), len(one)) for one in ranks)
    left_out = f" ({drawn} of {every} are drawn)" if drawn < every else ""
    return f"Numbers at the lines: ranks{left_out}."


def label_end(ax: Axes, y: float, text: str, colour: Any) -> None:
    """Label the line of ``ax`` that ends at ``y``, right of the panel."""
    place: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": 7}
    ax.text(1.02, y, text, color=colour, gid=LABEL + text, **place)


def _keep_labels_apart(page: Figure) -> None:
    """Move the labels of a panel, as little as possible, so that none is on another. The layout
    must be fixed."""
    for ax in page.findobj(Axes):
        texts = [text for text in ax.texts if str(text.get_gid()).startswith(LABEL)]
        if not texts:
            continue
        heights = ax.transData.transform([(0, text.get_position()[1]) for text in texts])[:, 1]
        order = np.argsort(heights, kind="stable")
        before = LABEL_HEIGHT * page.dpi / 72 * np.arange(len(texts))
        free = isotonic_regression(heights[order] - before).x
        top = max(ax.bbox.y0, ax.bbox.y1 - before[-1])
        for place, y in zip(order, np.clip(free, ax.bbox.y0, top) + before, strict=True):
            texts[place].set_transform(ax.transAxes)
            texts[place].set_y((y - ax.bbox.y0) / ax.bbox.height)
