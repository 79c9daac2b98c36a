"""The style of every figure: the page, its panels and texts, looks, axes, and labels of lines.

Page and font sizes are those of tueplots for ICML's two columns. The fonts (STIX, a Times) ship
with matplotlib, so a figure looks the same on every machine and needs no LaTeX.

A rule has a hue and a marker. Within a rule the lightness falls with the logarithm of the rank,
equally for every rule: in a grey print the lightness still shows the rank, and the marker or the
panel shows the rule. The hues of the rules of :data:`LOOKS` stay apart under deuteranopia,
protanopia and tritanopia.

Lines are labelled at their ends, in their colours, instead of in a legend. The labels stand in a
column on the right of their panel; the axis is extended to make room for them, and its line ends
with the data. :func:`finish` places them, because their places depend on the layout.
"""

import io
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Annotation, Text
from matplotlib.ticker import (
    FixedLocator,
    Formatter,
    FuncFormatter,
    Locator,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)
from tueplots import axes, bundles, figsizes

from study.figures.captions import plain, settings, wrapped
from study.figures.selection import Rule
from study.store import write_output
from study.vocabulary.quantities import (
    BACKWARD_IN,
    DESCENT,
    FORWARD_OUT,
    GRADIENT_NORM,
    QUANTITIES,
    Quantity,
)
from study.vocabulary.scaling import FRACTIONS, RULES, rule_label

# ---- page

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


def page_of_rules(rows: int, columns: int, ratio: float, settings: int) -> Figure:
    """An empty figure for a column of panels per rule. The height of a row does not depend on the
    number of columns. ``settings``: how many headings it needs."""
    column = FULL if columns > 1 else HALF
    above = 0.3 + (0.35 * settings if settings > 1 else 0)
    return figure(rows, columns, column=column, ratio=ratio * max(columns, 2) / 2, above=above)


def panels(
    labels: Sequence[str],
    columns: int,
    *,
    ratio: float,
    above: float = 0.0,
    column: str = "",
    beside: int = 1,
    **shared: Any,
) -> tuple[Figure, list[np.ndarray]]:
    """A page with ``columns`` panels for each label, which heads them; the labels from top to
    bottom, ``beside`` in a row. Each row shares its y axis.

    ``column``: by default the page is as wide as two columns if panels stand beside each other.
    ``shared``: options of ``subplots``. For the others see :func:`figure` and :func:`rows`.
    """
    across = columns * beside
    width = column or (FULL if across > 1 else HALF)
    page = figure(math.ceil(len(labels) / beside), across, column=width, ratio=ratio, above=above)
    return page, in_rows(page, labels, columns, beside, **shared)


def in_rows(
    page: Figure, labels: Sequence[str], columns: int, beside: int = 1, **shared: Any
) -> list[np.ndarray]:
    """The panels of a page: see :func:`panels`."""
    options: dict[str, Any] = {"sharey": True, "squeeze": False, **shared}
    return [part.subplots(1, columns, **options)[0] for part in rows(page, labels, beside)]


def first(row: np.ndarray, number: int) -> np.ndarray:
    """The first panels of a row; the others are hidden."""
    for ax in row[number:]:
        ax.set_visible(False)
    return row[:number]


def keywords(**given: Any) -> dict[str, Any]:
    """Keyword arguments, for a call that would be long with them."""
    return given


def band(
    ax: Axes, x: Any, low: Any, high: Any, colour: Any, gid: str, alpha: float = 0.2, **more: Any
) -> None:
    """A shaded area from ``low`` to ``high``."""
    options: dict[str, Any] = {"color": colour, "alpha": alpha, "linewidth": 0, "gid": gid, **more}
    ax.fill_between(x, low, high, **options)


def bars(
    ax: Axes, x: Any, low: Any, high: Any, colour: Any, gid: str, width: float = 0.8, **more: Any
) -> None:
    """A vertical bar from ``low`` to ``high`` at each x."""
    ax.vlines(x, low, high, color=colour, linewidth=width, gid=gid, **more)


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


# ---- looks

RGBA = tuple[float, float, float, float]

DOTTED, DASHED = (0, (0.8, 2.2)), (0, (4, 2))
"""Line styles: a predicted exponent; a predicted curve or a threshold."""
CONTEXT = "#8c8c8c"
"""The colour of what a panel shows for comparison only."""
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
DOTS: dict[str, Any] = {"marker": "o", "markersize": 1.8}
"""On a line: where it was measured."""
LARGE: dict[str, Any] = {
    "markersize": 5,
    "markeredgecolor": INK,
    "markeredgewidth": 0.7,
    "zorder": 4,
}
"""The marker of the best or of the whole run, on a line."""
HOLLOW: dict[str, Any] = {
    "markerfacecolor": "white",
    "markeredgewidth": 0.8,
    "linestyle": "none",
}
"""Points that show what lies behind them."""


@dataclass(frozen=True)
class Look:
    """``shades``: colours from light to dark; white paper takes those from :data:`ON_WHITE` on.
    ``marker``: matplotlib's."""

    shades: Colormap
    marker: str


LIGHTEST, DARKEST = 80.0, 20.0
"""CIELAB lightness at the ends of a rule's colour map."""
ON_WHITE = 1 / 3
"""The first part of a colour map is for dark pages. From here on, where the lightness is 60, its
colours have a contrast of at least 3:1 against white (WCAG 2.2, criterion 1.4.11)."""
MIDDLE = 0.36
"""The place of a single colour of a rule among those that are legible on white."""


def _shades(*colours: Any) -> Colormap:
    """A colour map through ``colours``, light to dark, whose lightness falls linearly."""
    path = LinearSegmentedColormap.from_list("path", list(colours))(np.linspace(0, 1, 256))
    at = np.interp(np.linspace(LIGHTEST, DARKEST, 33), lightness(path)[::-1], np.arange(256)[::-1])
    return LinearSegmentedColormap.from_list("shades", path[np.rint(at).astype(int)])


def lightness(colours: np.ndarray) -> np.ndarray:
    """CIELAB's L* of sRGB colours: 0 is black, 100 white."""
    rgb = np.asarray(colours)[..., :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return 116 * np.cbrt(linear @ [0.2126729, 0.7151522, 0.0721750]) - 16


LOOKS = {
    "lora": Look(_shades(*matplotlib.colormaps["copper"](np.linspace(1.0, 0.1, 64))), "o"),
    "rslora": Look(_shades("#97e2cc", "#36b0a4", "#11788a", "#07303b"), "s"),
    "power": Look(_shades("#d9cdf9", "#9a78e0", "#6a3fc4", "#2c1268"), "^"),
}
"""By the name of a scaling rule."""
SPARE_LOOKS = (
    Look(_shades("#b4ec3c", "#82ba06", "#6e7900", "#3a3a00"), "*"),
    Look(_shades("#fdc5dd", "#fa5a9c", "#d91387", "#5a0340"), "X"),
)
"""For rules that have no look of their own."""
POWER_MARKERS = "^vD<>pPh"
"""For several exponents of one rule in a panel: the hue shows the rule, the marker its p."""

QUANTITY_LOOKS: dict[tuple[str, str], tuple[str, str]] = {
    (GRADIENT_NORM.site, GRADIENT_NORM.stat): (INK, "o"),
    (DESCENT.site, DESCENT.stat): ("#c2185b", "D"),
    (FORWARD_OUT.site, FORWARD_OUT.stat): ("#2b6fc2", "^"),
    (BACKWARD_IN.site, BACKWARD_IN.stat): ("#8a9a00", "v"),
}
"""Colour and marker by site and statistic. The hues differ from those of the rules."""
SPARE_QUANTITY_LOOKS = (("#d9730d", "s"), ("#6d4c41", "P"))
"""For quantities that have no look of their own."""


def rule_look(scaling: str) -> Look:
    """The look of a rule; a rule that is not in :data:`LOOKS` gets a spare one."""
    if scaling in LOOKS:
        return LOOKS[scaling]
    return SPARE_LOOKS[_place(scaling, RULES, LOOKS) % len(SPARE_LOOKS)]


def quantity_look(quantity: Quantity) -> tuple[str, str]:
    """Colour and marker of a quantity; one not in :data:`QUANTITY_LOOKS` gets a spare look."""
    key = quantity.site, quantity.stat
    if key in QUANTITY_LOOKS:
        return QUANTITY_LOOKS[key]
    every = [(one.site, one.stat) for one in QUANTITIES]
    return SPARE_QUANTITY_LOOKS[_place(key, every, QUANTITY_LOOKS) % len(SPARE_QUANTITY_LOOKS)]


def _place(key: Any, every: Iterable[Any], looks: dict[Any, Any]) -> int:
    """The place of ``key`` among those of ``every`` that have no look of their own."""
    return [one for one in every if one not in looks].index(key)


def name(rule: Rule) -> str:
    """``LoRA``, ``rsLoRA``, ``power p = 0.75``."""
    return rule_label(rule.scaling, rule.p)


def gid(rule: Rule) -> str:
    """The identifier of a rule in the gids of artists, which tests and SVG files read."""
    return f"{rule.scaling} p={rule.p:g}"


def title(rule: Rule, lines: int = 1) -> str:
    """The heading of a panel, on one line or two: the rule and its gamma."""
    power = FRACTIONS.get(rule.p, f"{rule.p:g}")
    exponent = f"-{power}" if rule.p > 0 else f"{0 - rule.p:g}"
    gap = "\n" if lines > 1 else "   "
    return RULES[rule.scaling].label + gap + rf"$\gamma = \alpha\, r^{{{exponent}}}$"


def heading(ax: Axes, rule: Rule, columns: int) -> None:
    """Head one of ``columns`` panels with its rule, in the rule's colour."""
    text = title(rule, lines=1 if columns < 4 else 2)
    ax.set_title(text, color=tint(rule, [rule]), linespacing=1.0)


def tint(rule: Rule, beside: Sequence[Rule]) -> RGBA:
    """The one colour of a rule, if ranks are on an axis.

    Several exponents of one rule in ``beside`` take shades of its hue.
    """
    peers = [r for r in beside if r.scaling == rule.scaling]
    at = MIDDLE if len(peers) < 2 else 0.9 * peers.index(rule) / (len(peers) - 1)
    return _on_white(rule, at)


def marker(rule: Rule, beside: Sequence[Rule]) -> str:
    """The marker of a rule. Several exponents of one rule in ``beside`` have one each."""
    peers = [r for r in beside if r.scaling == rule.scaling]
    if len(peers) < 2:
        return rule_look(rule.scaling).marker
    return POWER_MARKERS[peers.index(rule) % len(POWER_MARKERS)]


def shade(rule: Rule, rank: float, ranks: Sequence[float]) -> RGBA:
    """The colour of one rank among ``ranks`` on white: light is low, and infinite rank is ink."""
    if math.isinf(rank):
        return matplotlib.colors.to_rgba(INK)
    finite = [math.log(r) for r in ranks if math.isfinite(r)]
    low, high = min(finite), max(finite)
    at = MIDDLE if low == high else (math.log(rank) - low) / (high - low)
    return _on_white(rule, at)


def _on_white(rule: Rule, at: float) -> RGBA:
    """The colour at ``at``, from 0 (light) to 1, of those that are legible on white paper."""
    return rule_look(rule.scaling).shades(ON_WHITE + at * (1 - ON_WHITE))


# ---- axes and numbers

TICK_INCHES = 0.3
"""Width of a four-digit tick label and a gap."""
FEWEST_TICKS, MOST_TICKS = 3, 6
"""Labelled ticks of a logarithmic axis."""


def y_label(ax: Axes, quantity: str, definition: str = "") -> None:
    """Label the y axis with the quantity and, on a second line, its unit or formula."""
    ax.set_ylabel(f"{quantity}\n{definition}" if definition else quantity, linespacing=1.15)


def legend_above(
    ax: Axes, handles: Sequence[Any], labels: Sequence[str], title: str, *, bold: bool = False
) -> None:
    """A legend with a title above the panel, flush left."""
    ax.legend(
        handles,
        labels,
        title=title,
        title_fontproperties={"size": 8, "weight": "bold" if bold else "normal"},
        loc="lower left",
        bbox_to_anchor=(0.0, 1.02),
        alignment="left",
    )


def number(value: float, digits: int = 2) -> str:
    """A number with a true minus sign, and without a sign if it rounds to 0."""
    return f"{value:.{digits}f}".replace("-", "−") if round(value, digits) else f"{0:.{digits}f}"


def rank_name(rank: float) -> str:
    """``∞``, ``512``, or a power of two if the rank has five digits."""
    if math.isinf(rank):
        return "∞"
    power = math.log2(rank)
    return f"$2^{{{power:.0f}}}$" if rank > 9999 and power.is_integer() else f"{rank:.7g}"


def rank_axis(ax: Axes, ranks: Sequence[float], inches: float) -> None:
    """A logarithmic axis with a tick at every rank of the study, and at least three ticks.

    On an axis ``inches`` long, as many ticks are labelled as fit.
    """
    ax.set_xscale("log", base=2)
    span = math.log(ranks[-1] / ranks[0]) or math.log(2)
    ticks = _with_a_middle(ranks)
    apart = TICK_INCHES * span / inches
    labelled: list[float] = []
    for rank in ticks:
        if not labelled or math.log(rank / labelled[-1]) >= apart:
            labelled.append(rank)
    if ticks[-1] not in labelled and len(labelled) > FEWEST_TICKS:
        labelled[-1] = ticks[-1]  # the highest rank rather than the one before it
    ax.xaxis.set_major_locator(FixedLocator(labelled))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda rank, _: rank_name(rank)))
    ax.xaxis.set_minor_locator(FixedLocator([rank for rank in ranks if rank not in labelled]))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(ranks[0] * math.exp(-0.06 * span), ranks[-1] * math.exp(0.06 * span))
    ax.set_xlabel("rank $r$")


def _with_a_middle(ranks: Sequence[float]) -> list[float]:
    """``ranks``; if there are two, also the power of two or the integer that is halfway."""
    if len(ranks) != 2:
        return list(ranks)
    halfway = math.sqrt(ranks[0] * ranks[1])
    power = 2.0 ** round(math.log2(halfway))
    middle = power if ranks[0] < power < ranks[1] else float(round(halfway))
    return sorted({*ranks, middle})


def linear_axis(ax: Axes) -> None:
    """A linear y axis with about five round labels."""
    ax.yaxis.set_major_locator(_round_ticks())


def _round_ticks() -> MaxNLocator:
    """About five round numbers.

    Unlike matplotlib's default, it does not read the size of the labels from the rcParams at every
    draw. An axis needs a locator of its own.
    """
    return MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], min_n_ticks=FEWEST_TICKS)


class LogTicks(Locator):
    """Ticks of a logarithmic axis: powers of ten if three are in view, else more of each decade.

    An axis too short for three of these has the ticks of a linear one.
    """

    SUBS = ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7))
    """The multiples of a power of ten that are tried, in this order."""

    def __call__(self) -> Sequence[float]:
        assert self.axis is not None
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """The ticks between ``vmin`` and ``vmax``."""
        low, high = sorted((vmin, vmax))
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for subs in self.SUBS:
            ticks = [sub * 10.0**power for power in powers for sub in subs]
            ticks = [tick for tick in ticks if low <= tick <= high]
            if len(ticks) >= FEWEST_TICKS:
                return ticks[:: math.ceil(len(ticks) / MOST_TICKS)]
        return [tick for tick in _round_ticks().tick_values(low, high) if low <= tick <= high]


class Decimals(Formatter):
    """All labels of an axis as decimals or, if one would be long, all with powers of ten."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return decimal(x)

    def format_ticks(self, values: Iterable[float]) -> list[str]:
        """The labels of the ticks at ``values``."""
        values = list(values)
        return [decimal(value, powers=not all(map(_is_short, values))) for value in values]


def log_axis(panels: Sequence[Axes] | np.ndarray) -> None:
    """A logarithmic y axis, shared by ``panels``, labelled at :class:`LogTicks`."""
    for ax in panels:
        ax.set_yscale("log")
    axis = panels[0].yaxis
    axis.set_major_locator(LogTicks())
    axis.set_major_formatter(Decimals())
    low, high = panels[0].get_ylim()
    decades = math.log10(high / low)
    axis.set_minor_locator(
        LogLocator(base=10, subs=range(2, 10), numticks=20) if decades < 6 else NullLocator()
    )
    axis.set_minor_formatter(NullFormatter())


def decimal(value: float, *, powers: bool | None = None) -> str:
    """``0.003``, or with ``powers`` ``3 × 10⁻³`` as a formula; by default the shorter one."""
    if not (powers if powers is not None else not _is_short(value)):
        return f"{value:.6g}"
    exponent = _exponent(value)
    digits = round(value / 10**exponent, 6)
    power = rf"10^{{{exponent}}}"
    return f"${power}$" if digits == 1 else rf"${digits:g}\times {power}$"


def _is_short(value: float) -> bool:
    return -3 <= _exponent(value) <= 3


def _exponent(value: float) -> int:
    return math.floor(math.log10(value) + 1e-9)


def crosses(ax: Axes, x: np.ndarray, colour: Any, gid: str) -> None:
    """Crosses on the upper edge of a panel: runs that diverged, or whose values lie above it."""
    place = ax.get_xaxis_transform()
    look = {**CROSS, "markersize": 3.5}
    ax.plot(x, np.full(len(x), 1.0), color=colour, transform=place, gid=gid, **look)


# ---- labels of lines

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
        _set_labels(ax, width, height)


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


def _set_labels(ax: Axes, width: float, height: float) -> None:
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
