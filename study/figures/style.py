"""The one place of style: sizes, fonts, what a rule and a rank look like, and how a figure is saved.

Sizes and font sizes are tueplots' for ICML's two columns; the fonts (STIX, a Times) come with matplotlib, so that a
figure looks the same on every machine and needs no LaTeX.

A rule has a hue and a marker; inside a rule the lightness runs with the logarithm of the rank, and runs alike in every
rule, so that a grey print still shows the rank, and the marker or the panel the rule. The hues stay apart under
deuteranopia, protanopia and tritanopia (tests/figures/test_style.py simulates them).
"""

import io
import math
import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)
from tueplots import axes, bundles, figsizes

from study.figures.selection import Rule

DPI = 300
RGBA = tuple[float, float, float, float]
FULL, HALF = "full", "half"
INK, FAINT = "#222222", "#6b6b6b"
CROSS: dict[str, Any] = {
    "marker": "x",
    "markersize": 4.5,
    "markeredgewidth": 1.1,
    "linestyle": "none",
    "clip_on": False,
    "zorder": 5,
}
"""Where a run diverged."""

PAPER: dict[str, Any] = {
    **bundles.icml2024(column="full", usetex=False),
    **axes.lines(),
    **axes.spines(top=False, right=False),
    **axes.color(base=INK, face="none"),
    # By name, not by the class "serif": classes are looked up when a figure is drawn, which may be outside of `paper`.
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
    """Draw in the style, whatever the caller's rcParams are; they are put back afterwards. Also a decorator."""
    with matplotlib.style.context(PAPER, after_reset=True):
        yield


def figure(
    nrows: int, ncols: int, *, column: str = FULL, ratio: float, above: float = 0.0
) -> Figure:
    """An empty figure for a grid of panels, one column of a conference page wide (``half``) or two (``full``).

    ``ratio`` is a panel's height to its width, ``above`` the inches kept for legends and titles.
    """
    size = figsizes.icml2024_full if column == FULL else figsizes.icml2024_half
    width, height = size(nrows=nrows, ncols=ncols, height_to_width_ratio=ratio)["figure.figsize"]
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    return Figure(figsize=(width, height + above), layout=layout)


def rows(page: Figure, labels: Sequence[str]) -> list[Any]:
    """The page cut into a part per label, one below the other and headed by it; the page itself for one without."""
    if list(labels) == [""]:
        return [page]
    parts = list(page.subfigures(len(labels), 1, squeeze=False)[:, 0])
    for part, label in zip(parts, labels, strict=True):
        part.suptitle(
            textwrap.fill(label, int(page.get_figwidth() * 15)),
            x=0.008,
            ha="left",
            fontweight="bold",
        )
    return parts


# ---------------------------------------------------------------------------------------------- what rules look like


@dataclass(frozen=True)
class Look:
    """How a rule is drawn: its name, its shades from light (low rank) to dark, and its marker."""

    name: str
    shades: Colormap
    marker: str


QUANTITY_LOOKS: dict[str, tuple[str, str]] = {
    "adapter_grad": ("#222222", "o"),
    "adapter_update": ("#c2185b", "D"),
    "adapter_out": ("#2b6fc2", "^"),
    "adapter_in_grad": ("#8a9a00", "v"),
}
"""Colour and marker of a quantity, by its site. The hues differ from those of the rules."""

LIGHTEST, DARKEST = 80.0, 27.0
"""CIELAB lightness of the lowest and the highest rank: seen on white, and not yet black."""


def _shades(*colours: Any) -> Colormap:
    """The way through ``colours``, light to dark, at a pace that lets the lightness fall evenly."""
    path = LinearSegmentedColormap.from_list("path", list(colours))(np.linspace(0, 1, 256))
    at = np.interp(np.linspace(LIGHTEST, DARKEST, 33), lightness(path)[::-1], np.arange(256)[::-1])
    return LinearSegmentedColormap.from_list("shades", path[np.rint(at).astype(int)])


def lightness(colours: np.ndarray) -> np.ndarray:
    """CIELAB's L* of sRGB colours: 0 is black, 100 white."""
    rgb = np.asarray(colours)[..., :3]
    luminance = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [
        0.2126729,
        0.7151522,
        0.0721750,
    ]
    return 116 * np.cbrt(luminance) - 16


LOOKS = {
    "lora": Look("LoRA", _shades(*matplotlib.colormaps["copper"](np.linspace(1.0, 0.2, 64))), "o"),
    "rslora": Look("rsLoRA", _shades("#97e2cc", "#36b0a4", "#11788a", "#0c3a46"), "s"),
    "power": Look("power", _shades("#d9cdf9", "#9a78e0", "#6a3fc4", "#2c1268"), "^"),
}
POWER_MARKERS = "^vD<>pPh"
"""For several exponents of ``power`` in one panel: there hue says the rule and the marker its p."""


def name(rule: Rule) -> str:
    """``LoRA``, ``rsLoRA``, ``power, p = 0.75``."""
    return LOOKS[rule.scaling].name + (f", $p = {rule.p:g}$" if rule.scaling == "power" else "")


def gid(rule: Rule) -> str:
    """What the artists of a rule are called, in the tests and in an SVG."""
    return f"{rule.scaling} p={rule.p:g}"


def title(rule: Rule, lines: int = 1) -> str:
    """A panel's heading: the rule and its gamma, written from p alone."""
    power = {0.25: "1/4", 0.5: "1/2", 0.75: "3/4"}.get(rule.p, f"{rule.p:g}")
    exponent = f"-{power}" if rule.p > 0 else f"{0 - rule.p:g}"
    return (
        LOOKS[rule.scaling].name
        + ("\n" if lines > 1 else "   ")
        + rf"$\gamma = \alpha\, r^{{{exponent}}}$"
    )


def tint(rule: Rule, beside: Sequence[Rule]) -> RGBA:
    """A rule's one colour, where ranks are on an axis; the exponents of ``power`` take the shades of its hue."""
    peers = [r for r in beside if r.scaling == rule.scaling]
    at = 0.6 if len(peers) < 2 else 0.15 + 0.75 * peers.index(rule) / (len(peers) - 1)
    return LOOKS[rule.scaling].shades(at)


def marker(rule: Rule, beside: Sequence[Rule]) -> str:
    """A rule's marker; beside other exponents of ``power``, one of its own."""
    peers = [r for r in beside if r.scaling == rule.scaling]
    return (
        LOOKS[rule.scaling].marker
        if len(peers) < 2
        else POWER_MARKERS[peers.index(rule) % len(POWER_MARKERS)]
    )


def shade(rule: Rule, rank: float, ranks: Sequence[float]) -> RGBA:
    """The colour of one rank among ``ranks``: light is low. Infinite rank, the limit that they tend to, is ink."""
    if math.isinf(rank):
        return matplotlib.colors.to_rgba(INK)
    finite = [math.log(r) for r in ranks if math.isfinite(r)]
    low, high = min(finite), max(finite)
    return LOOKS[rule.scaling].shades(0.6 if low == high else (math.log(rank) - low) / (high - low))


# --------------------------------------------------------------------------------------------- axes, legends and notes


def y_label(ax: Axes, quantity: str, definition: str = "") -> None:
    """Name the y axis: the quantity, and below it its unit or formula."""
    ax.set_ylabel(f"{quantity}\n{definition}" if definition else quantity, linespacing=1.15)


def number(value: float, digits: int = 2) -> str:
    """A number with a true minus sign, and no minus before a zero."""
    return f"{value:.{digits}f}".replace("-", "−") if round(value, digits) else f"{0:.{digits}f}"


def rank_name(rank: float) -> str:
    """``∞``, ``512``, or a power of two where five digits would crowd an axis."""
    if math.isinf(rank):
        return "∞"
    power = math.log2(rank)
    return f"$2^{{{power:.0f}}}$" if rank > 9999 and power.is_integer() else f"{rank:.7g}"


def rank_axis(ax: Axes, ranks: Sequence[float], inches: float) -> None:
    """A logarithmic rank axis with ticks at the study's own ranks, labelled as far as ``inches`` have room."""
    ax.set_xscale("log", base=2)
    span = math.log(ranks[-1] / ranks[0]) or math.log(2)
    room = 0.27 * span / inches  # 0.27 inches: four digits of tick label and a gap
    labelled: list[float] = []
    for rank in ranks:
        if not labelled or math.log(rank / labelled[-1]) >= room:
            labelled.append(rank)
    ax.xaxis.set_major_locator(FixedLocator(labelled))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda rank, _: rank_name(rank)))
    ax.xaxis.set_minor_locator(FixedLocator([r for r in ranks if r not in labelled]))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(ranks[0] * math.exp(-0.06 * span), ranks[-1] * math.exp(0.06 * span))
    ax.set_xlabel("rank $r$")


def linear_axis(ax: Axes) -> None:
    """A linear y axis with some five round labels."""
    # Set by hand, here and below: a default locator asks the rcParams for the size of a label each time it is drawn.
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))


def log_axis(panels: Sequence[Axes]) -> None:
    """A logarithmic y axis, shared by ``panels``, that has labels even where it spans less than a decade."""
    for ax in panels:
        ax.set_yscale("log")
    axis = panels[0].yaxis
    low, high = panels[0].get_ylim()
    decades = math.log10(high / low)
    steps = (1, 2, 3, 5) if decades < 0.8 else (1, 3) if decades < 3 else (1,)
    axis.set_major_locator(LogLocator(base=10, subs=steps, numticks=20 if len(steps) > 1 else 7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _decimal(value)))
    axis.set_minor_locator(
        LogLocator(base=10, subs=range(2, 10), numticks=20) if decades < 6 else NullLocator()
    )
    axis.set_minor_formatter(NullFormatter())
    if (
        decades < 1 / 3
    ):  # too short for any of these steps to appear twice: label it as a plain axis
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.set_minor_locator(NullLocator())


def _decimal(value: float) -> str:
    exponent = math.floor(math.log10(value) + 1e-9)
    if -3 <= exponent <= 3:
        return f"{value:.6g}"
    digits = round(value / 10**exponent, 6)
    power = rf"10^{{{exponent}}}"
    return f"${power}$" if digits == 1 else rf"${digits:g}\times {power}$"


def ladder(
    parent: Figure | SubFigure,
    panels: Any,
    rules: Sequence[Rule],
    ranks: Sequence[float],
    has: set[Any],
) -> Axes:
    """The legend of ranks beside ``panels``: a rung per rank, lowest at the bottom, and a column of shades per rule.

    ``has`` holds the (rule, rank) pairs that are drawn; the others stay blank.
    """
    page = parent.get_figure(root=True)
    wide = min(0.15 * len(rules), 0.45)
    tall = 0.155 * len(ranks) / (0.8 * page.get_figheight() * parent.bbox.height / page.bbox.height)
    ax, _ = matplotlib.colorbar.make_axes(
        list(np.ravel(panels)),
        location="right",
        fraction=wide / (page.get_figwidth() - 1),
        shrink=min(0.95, tall),
        aspect=0.155 * len(ranks) / wide,
        pad=0.015,
    )
    for x, rule in enumerate(rules):
        for y, rank in enumerate(ranks):
            if (rule, rank) in has:
                colour = shade(rule, rank, ranks)
                ax.add_patch(
                    Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.6)
                )
    ax.set(xlim=(0, len(rules)), ylim=(0, len(ranks)), xticks=[])
    ax.set_yticks(np.arange(len(ranks)) + 0.5, [rank_name(r) for r in ranks])
    ax.tick_params(length=0, pad=2, left=False, labelleft=False, labelright=True)
    ax.spines[:].set_visible(False)
    ax.set_title("rank", fontsize=7, pad=3)
    ax.set_label("ladder")
    return ax


def finish(drawn: Figure, *sentences: str) -> Figure:
    """Add the fine print under the panels (how seeds were averaged, what a band or a cross is) and settle the layout.

    Left to itself the layout is made anew, and a little differently, whenever the figure is drawn.
    """
    text = " ".join(s for s in sentences if s)
    if text:
        wrapped = textwrap.fill(text, int(drawn.get_figwidth() * 24))
        drawn.supxlabel(wrapped, x=0.008, ha="left", fontsize=6.5, color=FAINT, linespacing=1.15)
    drawn.draw_without_rendering()
    drawn.set_layout_engine("none")
    return drawn


# -------------------------------------------------------------------------------------------------------------- saving


def save(drawn: Figure, folder: str | Path, name: str) -> tuple[Path, Path]:
    """Write ``folder/name.png`` and ``folder/name.pdf`` (fonts embedded as TrueType), each whole or not at all.

    Neither holds a date or a version: the same tables give the same bytes, so that git sees a change only where a
    picture changed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    png, pdf = folder / f"{name}.png", folder / f"{name}.pdf"
    with paper():
        _write(drawn, png, metadata={"Software": None}, dpi=DPI)
        _write(drawn, pdf, metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return png, pdf


def _write(drawn: Figure, path: Path, **options: Any) -> None:
    page = io.BytesIO()
    drawn.savefig(page, format=path.suffix[1:], **options)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(page.getvalue())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
