"""The exponents of the primary quantities over training: what is level at the start need not stay so."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.figures import style
from study.figures.quantities import asymptote, fits
from study.figures.selection import (
    Absent,
    Family,
    Rule,
    Tables,
    families,
    most_varied,
    rules_left_out,
)
from study.figures.training_curves import step_axis
from study.vocabulary.quantities import PRIMARY, Quantity

MOST_FAMILIES, MOST_RULES = 4, 6

Fits = dict[tuple[Rule, str], pd.DataFrame]
"""The fits of a rule and a quantity's name, a row per step."""


@style.paper()
def exponents_over_training(tables: Tables) -> Figure:
    """Exponents of the primary quantities against the step, a line per rule with its 95 % interval as a band.

    A panel per quantity and a row per setting. The grey band is what counts as level: less than a factor of 1.5 from
    the lowest to the highest rank, the margin of the verdicts. Theory is dotted, at the steps that it speaks of.
    """
    if tables.exponents.empty or tables.cells.empty:
        raise Absent("no exponents in the tables: analyze the study first")
    found = [(family, _fits(family, tables.exponents)) for family in families(tables.cells)]
    drawable = [family for family, rows in found if rows]
    if not drawable:
        raise Absent("no primary quantity with an exponent at two steps")
    shown, left_out = most_varied(drawable, MOST_FAMILIES)
    drawn = [(family, rows) for family, rows in found if any(family is one for one in shown)]
    quantities = [
        q for q in PRIMARY if any(q.name == name for _, rows in drawn for _, name in rows)
    ]

    page = style.figure(len(drawn), len(quantities), ratio=0.95, above=0.3 + 0.45 * len(drawn))
    theory = False
    for part, (family, rows) in zip(
        style.rows(page, [f.label for f, _ in drawn]), drawn, strict=True
    ):
        panels = part.subplots(1, len(quantities), sharex=True, sharey=True, squeeze=False)[0]
        rules = [rule for rule in family.rules[:MOST_RULES] if any(rule == one for one, _ in rows)]
        for ax, quantity in zip(panels, quantities, strict=True):
            here = {
                rule: rows[rule, quantity.name] for rule in rules if (rule, quantity.name) in rows
            }
            theory = _draw(ax, family, quantity, here) or theory
            step_axis(ax, np.concatenate([fit["step"].to_numpy(int) for fit in rows.values()]))
        style.y_label(panels[0], "exponent in the rank")
        style.linear_axis(panels[0])
        handles = [panels[0].plot([], [], **_look(rule, family))[0] for rule in rules]
        part.legend(
            handles,
            [style.name(rule) for rule in rules],
            loc="outside upper right",
            ncols=len(rules),
        )
    intervals = {
        str(kind) for _, rows in drawn for one in rows.values() for kind in one["interval"]
    }
    over = " or ".join(text for kind, text in (("seeds", "over seeds"), ("ranks", "over ranks, there being one seed"))
                       if kind in intervals)  # fmt: skip
    return style.finish(
        page,
        f"Bands: 95% intervals ({over})." if over else "",
        "Grey: less than a factor of 1.5 from the lowest rank to the highest.",
        "Dotted: theory." if theory else "",
        left_out,
        rules_left_out(shown, MOST_RULES),
    )


def _fits(family: Family, exponents: pd.DataFrame) -> Fits:
    """Every quantity's fits; nothing for one that no rule has at two steps."""
    found: Fits = {}
    for quantity in PRIMARY:
        rows = {rule: fits(exponents, family, rule, quantity) for rule in family.rules[:MOST_RULES]}
        if any(len(one) > 1 for one in rows.values()):
            found |= {(rule, quantity.name): one for rule, one in rows.items() if len(one)}
    return found


def _draw(ax: Axes, family: Family, quantity: Quantity, rows: dict[Rule, pd.DataFrame]) -> bool:
    """One quantity's exponents; whether theory has a say in them. gids: ``curve|band|theory <rule>``, ``level``."""
    told = False
    ranks = family.finite_ranks
    margin = np.log(1.5) / np.log(ranks[-1] / ranks[0])
    ax.axhspan(-margin, margin, color=style.FAINT, alpha=0.13, linewidth=0, zorder=0, gid="level")
    ax.axhline(0, color=style.FAINT, linewidth=0.6, zorder=1)
    for rule, fit in rows.items():
        who, look = style.gid(rule), _look(rule, family)
        step = fit["step"].to_numpy(int)
        ax.fill_between(step, fit["ci_low"].to_numpy(float), fit["ci_high"].to_numpy(float), color=look["color"],
                        alpha=0.2, linewidth=0, zorder=2, gid=f"band {who}")  # fmt: skip
        ax.plot(step, fit["exponent"].to_numpy(float), **look, zorder=3, gid=f"curve {who}")
        known = np.array([asymptote(quantity, family, rule.p, s) for s in step])
        predicted = np.where(np.isfinite(fit["predicted"]), fit["predicted"], known).astype(float)
        if np.isfinite(predicted).any():
            told = True
            few = np.isfinite(predicted).sum() == 1
            ax.plot(step, predicted, color=style.INK, linestyle=(0, (0.7, 1.8)), linewidth=1.5, zorder=2.5,
                    marker="_" if few else None, markersize=7, gid=f"theory {who}")  # fmt: skip
    ax.set_title(f"{quantity.name}\n{quantity.symbol}", linespacing=1.2)
    return told


def _look(rule: Rule, family: Family) -> dict[str, Any]:
    return {"color": style.tint(rule, family.rules), "marker": style.marker(rule, family.rules), "markersize": 2.6,
            "markerfacecolor": "white", "markeredgewidth": 0.7}  # fmt: skip
