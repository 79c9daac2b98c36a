"""How rules, ranks and quantities look: colours, markers and names.

A rule has a hue and a marker. Within a rule the lightness falls with the logarithm of the rank,
equally for every rule: in a grey print the lightness still shows the rank, and the marker or the
panel shows the rule. The hues of the rules of :data:`LOOKS` stay apart under deuteranopia,
protanopia and tritanopia (tests/figures/test_style.py simulates them).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap

from study.figures.selection import Rule
from study.figures.style.page import INK
from study.vocabulary.quantities import (
    BACKWARD_IN,
    DESCENT,
    FORWARD_OUT,
    GRADIENT_NORM,
    QUANTITIES,
    Quantity,
)
from study.vocabulary.scaling import FRACTIONS, RULES, rule_label

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
