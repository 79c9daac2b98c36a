"""The rules' names, colours and markers: those of the figures, and a variant for a dark page."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.colors import to_hex

from study.figures import style
from study.figures.selection import Rule
from study.vocabulary.scaling import RULES

PLOTLY_MARKERS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond"}
"""Plotly's names for matplotlib's markers. Any other becomes a cross."""


def rule_looks(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """One object per rule, with colours for the ``light`` and the ``dark`` page.

    ``id``, ``name``, ``marker``; ``lines``: the name for the head of a panel; ``has_own_p``:
    whether the rule fixes its exponent, as LoRA and rsLoRA do; ``tint``: the colour of the rule;
    ``shades``: a colour per rank; ``dash`` and ``study``: the line and the number of the study.
    """
    ranks = sorted(set(cells["rank"]))
    pairs = zip(cells["scaling"], cells["exponent"], strict=True)
    rules = sorted({Rule.of(scaling, p) for scaling, p in pairs})
    return [
        {
            "id": style.gid(rule),
            "name": style.name(rule),
            "lines": [style.name(rule)],
            "marker": PLOTLY_MARKERS.get(style.rule_look(rule.scaling).marker, "cross"),
            "dash": "solid",
            "study": 0,
            "has_own_p": RULES[rule.scaling].p is not None,
            "tint": {
                "light": to_hex(style.tint(rule, rules)),
                "dark": to_hex(style.rule_look(rule.scaling).shades(0.15)),
            },
            "shades": {
                "light": {_key(rank): to_hex(style.shade(rule, rank, ranks)) for rank in ranks},
                "dark": {_key(rank): to_hex(_shade_on_dark(rule, rank, ranks)) for rank in ranks},
            },
        }
        for rule in rules
    ]


def _shade_on_dark(rule: Rule, rank: float, ranks: Sequence[float]) -> style.RGBA:
    """The rule's hue, lightest at the highest rank, so that it stands out on a dark page."""
    if math.isinf(rank):
        return (1.0, 1.0, 1.0, 1.0)
    finite = [math.log(r) for r in ranks if math.isfinite(r)]
    low, high = min(finite), max(finite)
    position = 0.6 if low == high else (math.log(rank) - low) / (high - low)
    return style.rule_look(rule.scaling).shades(0.62 * (1 - position))


def _key(rank: float) -> str:
    """The rank as JavaScript prints it."""
    return "inf" if math.isinf(rank) else str(int(rank))
