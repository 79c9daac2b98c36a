"""Scaling exponents over training: a quantity that is stable at step 0 may not stay so."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.analysis.summary import BATCHES_OF
from study.figures import style
from study.figures.captions import on_batch, sentence_on_ci
from study.figures.laws import fits
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
from study.vocabulary.quantities import HELDOUT, PRIMARY, TRAIN, Quantity
from study.vocabulary.thresholds import STABLE_RATIO

MOST_FAMILIES, MOST_RULES = 3, 6

SHORT_LINES: dict[str, Any] = {
    "color": style.INK,
    "linestyle": "none",
    "marker": "_",
    "zorder": 3.5,
    "markersize": 8,
    "markeredgewidth": 1.1,
}
Fits = dict[tuple[Rule, str], pd.DataFrame]
"""By rule and name of quantity: the fits, one row per step."""


@style.paper()
def exponents_over_training(tables: Tables) -> Figure:
    """Scaling exponents of the primary quantities over training, one line per rule. In the grey
    band a quantity counts as stable.

    A panel per quantity, a row of panels per setting. The grey band is the margin of the verdicts:
    a change by less than a factor of 1.5 from the lowest to the highest rank. The two conditions of
    the paper are read on a held-out batch, if the study probed one, as in a report; all other
    quantities are read on the training batch.
    """
    if tables.exponents.empty or tables.cells.empty:
        raise Absent("no exponents in the tables: analyze the study first")
    every = [(family, _fits(family, tables.exponents)) for family in families(tables.cells)]
    drawable = [(family, rows) for family, rows in every if rows]
    if not drawable:
        raise Absent("no primary quantity with an exponent at two steps")
    drawn, left_out = most_varied(drawable, MOST_FAMILIES, lambda one: one[0])
    quantities = [
        q for q in PRIMARY if any(q.name == name for _, rows in drawn for _, name in rows)
    ]

    shown, columns = [family for family, _ in drawn], len(quantities)
    ratio = 0.95 * columns / 4  # the height does not depend on the number of columns
    options = style.keywords(above=0.3 + 0.45 * len(drawn), column=style.FULL, sharex=True)
    page, grid = style.panels([one.label for one in shown], columns, ratio=ratio, **options)
    theory = False
    beside = sorted({rule for family in shown for rule in family.rules[:MOST_RULES]})
    for panels, (family, rows) in zip(grid, drawn, strict=True):
        rules = [rule for rule in family.rules[:MOST_RULES] if any(rule == one for one, _ in rows)]
        for ax, quantity in zip(panels, quantities, strict=True):
            name = quantity.name
            here = {rule: rows[rule, name] for rule in rules if (rule, name) in rows}
            theory = _draw(ax, family.finite_ranks, beside, quantity, here) or theory
            step_axis(ax, np.concatenate([fit["step"].to_numpy(int) for fit in rows.values()]))
        style.y_label(panels[0], "scaling exponent", "with rank")
        style.linear_axis(panels[0])
    page.legend(
        [page.axes[0].plot([], [], **_look(rule, beside))[0] for rule in beside],
        [style.name(rule) for rule in beside],
        loc="outside upper right",
        ncols=len(beside),
    )
    kinds = {str(kind) for _, rows in drawn for one in rows.values() for kind in one["interval"]}
    return style.finish(
        page,
        sentence_on_ci("Bands", kinds),
        f"Grey: a change by less than a factor of {STABLE_RATIO:g} over these ranks.",
        "Short black lines: theory." if theory else "",
        _on_batches(drawn),
        left_out,
        rules_left_out(shown, MOST_RULES),
        shown=shown,
    )


def _fits(family: Family, exponents: pd.DataFrame) -> Fits:
    """The fits of every quantity that some rule has at two steps, on the first batch with them."""
    found: Fits = {}
    for quantity in PRIMARY:
        for batch in BATCHES_OF.get(quantity, (TRAIN,)):
            rows = {
                rule: fits(exponents, family, rule, quantity, batch)
                for rule in family.rules[:MOST_RULES]
            }
            if any(len(one) > 1 for one in rows.values()):
                found |= {(rule, quantity.name): one for rule, one in rows.items() if len(one)}
                break
    return found


def _on_batches(drawn: list[tuple[Family, Fits]]) -> str:
    """A sentence on the batches."""
    names = {
        name
        for _, rows in drawn
        for (_, name), one in rows.items()
        if (one["batch"] == HELDOUT).any()
    }
    nouns = [quantity.noun for quantity in PRIMARY if quantity.name in names]
    if not nouns:
        return on_batch()
    return f"On the held-out batch: {' and '.join(nouns)}; on the training batch: all others."


def _draw(
    ax: Axes,
    ranks: list[float],
    beside: list[Rule],
    quantity: Quantity,
    rows: dict[Rule, pd.DataFrame],
) -> bool:
    """The exponents of one quantity. Return whether theory predicts any of them.

    ``beside``: the rules of the figure. gids: ``curve|band|theory <rule>``, ``level``.
    """
    margin = np.log(STABLE_RATIO) / np.log(ranks[-1] / ranks[0])
    ax.axhspan(-margin, margin, color=style.FAINT, alpha=0.13, linewidth=0, zorder=0, gid="level")
    ax.axhline(0, color=style.FAINT, linewidth=0.6, zorder=1)
    theory = False
    for rule, fit in rows.items():
        who, look = style.gid(rule), _look(rule, beside)
        step = fit["step"].to_numpy(int)
        ends = fit["ci_low"].to_numpy(float), fit["ci_high"].to_numpy(float)
        style.band(ax, step, *ends, look["color"], f"band {who}", zorder=2)
        ax.plot(step, fit["exponent"].to_numpy(float), **look, zorder=3, gid=f"curve {who}")
        predicted = fit["predicted"].to_numpy(float)
        if np.isfinite(predicted).any():
            theory = True
            ax.plot(step, predicted, gid=f"theory {who}", **SHORT_LINES)
    ax.set_title(f"{quantity.noun}\n{quantity.symbol}", linespacing=1.2)
    return theory


def _look(rule: Rule, beside: list[Rule]) -> dict[str, Any]:
    return {
        "color": style.tint(rule, beside),
        "marker": style.marker(rule, beside),
        "markersize": 2.6,
        "markerfacecolor": "white",
        "markeredgewidth": 0.7,
    }
