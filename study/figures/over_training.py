"""The paper's Figures 2 and 3: loss and gradient norm over training, one curve per rank, one panel per rule."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure, SubFigure

from study.figures import style
from study.figures.selection import (
    Absent,
    Family,
    Tables,
    families,
    holding,
    model_wide,
    most_varied,
    per_step,
    rules_left_out,
)
from study.figures.training_curves import (
    Curve,
    coincide,
    curves,
    draw,
    fine_print,
    limits,
    step_axis,
)

MOST_RULES = 5


class Quantity(NamedTuple):
    """What a row of panels shows: a (cell_id, step, value) series, averaged over seeds geometrically or not."""

    label: tuple[str, str]
    series: pd.DataFrame
    geometric: bool


@style.paper()
def loss_curves(tables: Tables) -> Figure:
    """Training loss and held-out perplexity over training (Kalajdzievski 2023, arXiv 2312.03732, Figure 2).

    A row of panels each, the second only where something was evaluated; a column per rule; y is shared along a row.
    Losses are means over target tokens in nats; perplexity is the exponential of the held-out loss, its average over
    seeds geometric. Settings that must not be mixed come one below the other.
    """
    loss, heldout = (per_step(tables.cells, tables.metrics, name) for name in ("loss", "eval_loss"))
    perplexity = heldout.assign(
        value=np.exp(np.minimum(heldout["value"].astype(float), 500.0))
    )  # e^500: still finite
    quantities = [
        Quantity(("training loss", "(nats per token)"), loss, geometric=False),
        Quantity(("held-out", "perplexity"), perplexity, geometric=True),
    ]
    return _over_training(
        holding(tables.cells, loss, "finite training loss"), quantities, most=3, ratio=0.47
    )


@style.paper()
def grad_norm_curves(tables: Tables) -> Figure:
    """The norm of the gradient over all adapters, before clipping, over training (the paper's Figure 3), on a log axis.

    From the probes' model-wide ``adapter_grad`` where every cell has it, else from the ``grad_norm`` of every step:
    the same number, so that only the choice of steps differs. Averages over seeds are geometric.
    """
    probed = model_wide(tables.cells, tables.probes, "adapter_grad", "norm")
    every_step = per_step(tables.cells, tables.metrics, "grad_norm")
    every_step = every_step[every_step["value"] > 0]
    series = probed if set(probed["cell_id"]) >= set(every_step["cell_id"]) else every_step
    norm = Quantity(("adapter gradient norm", r"$\|\nabla_{\!A,B}\,L\|_2$"), series, geometric=True)
    cells = holding(tables.cells, series, "model-wide gradient norm")
    return _over_training(cells, [norm], most=4, ratio=0.62, log=True)


def _over_training(
    cells: pd.DataFrame, quantities: list[Quantity], *, most: int, ratio: float, log: bool = False
) -> Figure:
    """Settings one below the other, each with a row of panels per quantity and a column per rule."""
    shown, left_out = most_varied(
        [f for f in families(cells) if any(_curves(f, q) for q in quantities)], most
    )
    if not shown:
        raise Absent("no run with two steps in the tables")
    quantities = [q for q in quantities if any(_curves(family, q) for family in shown)]
    columns = min(max(len(family.rules) for family in shown), MOST_RULES)
    page = style.figure(
        len(quantities) * len(shown),
        columns,
        column=style.FULL if columns > 1 else style.HALF,
        ratio=ratio
        * max(columns, 2)
        / 2,  # a row keeps its height, however many rules share its width
        above=0.3 + (0.35 * len(shown) if len(shown) > 1 else 0),
    )
    drawn: list[list[Curve]] = []
    for part, family in zip(
        style.rows(page, [family.label for family in shown]), shown, strict=True
    ):
        drawn += _family(part, family, quantities, columns, log)
    hidden = any(coincide(row, limits(row, log=log, margin=0), log=log) for row in drawn)
    said = fine_print(
        [curve for row in drawn for curve in row],
        mean="geometric mean" if log else "mean",
        hidden=hidden,
    )
    return style.finish(page, said, left_out, rules_left_out(shown, MOST_RULES))


def _family(
    part: Figure | SubFigure, family: Family, quantities: list[Quantity], columns: int, log: bool
) -> list[list[Curve]]:
    """Draw one setting's panels, with the ladder of its ranks beside them; return the curves of each row."""
    panels = part.subplots(len(quantities), columns, sharex=True, sharey="row", squeeze=False)
    rules = family.rules[:columns]
    drawn: list[list[Curve]] = []
    for row, quantity in zip(panels, quantities, strict=True):
        found = [curve for curve in _curves(family, quantity) if curve.rule in rules]
        reach = limits(found, log=log, margin=0)
        for ax, rule in zip(row, rules, strict=False):
            draw(ax, [curve for curve in found if curve.rule == rule], family.ranks, reach)
        style.y_label(row[0], *quantity.label)
        row[0].set_ylim(*limits(found, log=log, margin=0.05))
        if log:
            style.log_axis(row)
        else:
            style.linear_axis(row[0])
        drawn.append(found)
    all_curves = [curve for found in drawn for curve in found]
    for ax, rule in zip(panels[0], rules, strict=False):
        ax.set_title(
            style.title(rule, lines=1 if columns < 4 else 2),
            color=style.tint(rule, [rule]),
            linespacing=1.0,
        )
    for ax in panels[:, len(rules) :].flat:
        ax.set_visible(False)
    for ax in panels[-1]:
        step_axis(ax, np.concatenate([curve.step for curve in all_curves]))
    style.ladder(
        part, panels, rules, family.ranks, {(curve.rule, curve.rank) for curve in all_curves}
    )
    return drawn


def _curves(family: Family, quantity: Quantity) -> list[Curve]:
    return curves(family, quantity.series, log=quantity.geometric)
