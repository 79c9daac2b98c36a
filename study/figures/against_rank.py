"""Quantities against the rank, with power laws: of the whole model, and of layers.

Rank stability has a forward and a backward condition (Kalajdzievski 2023, theorem 3.2): the outputs
of an adapter and the gradients that it passes to its inputs must not depend on the rank. Both grow
along ``r (r - 1 + rho)``, with different crossovers rho: about 5 forward on real text, about D
backward.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from study.analysis.predictions import predicted_curve
from study.figures import laws, style
from study.figures.captions import on_batch, span
from study.figures.selection import MOST_FAMILIES, Absent, Tables, cells_of, probed
from study.vocabulary.quantities import (
    BACKWARD_IN,
    DESCENT,
    FORWARD_OUT,
    GRADIENT_NORM,
    HELDOUT,
    SITES,
    STATS,
    TRAIN,
    Quantity,
)
from study.vocabulary.thresholds import LAST_PREDICTED_STEP

SITE = FORWARD_OUT.site
MOMENTS = {
    "mean_abs": r"$\langle|y|\rangle$",
    "rms": r"$\langle y^2\rangle^{1/2}$",
    "m4": r"$\langle y^4\rangle^{1/4}$",
}


@style.paper()
def grad_norm_vs_rank(tables: Tables) -> Figure:
    """Norm of the gradient over all adapters, on the training batch, against the rank, at the first
    and last probed step.

    While B = 0, only B has a gradient.
    """
    return _against_rank(tables, GRADIENT_NORM, last=True)


@style.paper()
def descent_vs_rank(tables: Tables) -> Figure:
    """Descent ``-<gradient, update>`` of the first update, over all adapters, on the training
    batch, against the rank.

    The descent is the first-order decrease of the loss.
    """
    return _against_rank(tables, DESCENT, last=False, unit="(nats)")


def _against_rank(tables: Tables, quantity: Quantity, *, last: bool, unit: str = "") -> Figure:
    """A row per family: a panel for the first step and, with ``last``, one for the last."""
    where = {"site": quantity.site, "stat": quantity.stat}
    series = probed(tables, **where, model=True)
    cells = cells_of(tables.cells, series, f"model-wide {quantity.site} {quantity.stat}")
    shown, left_out = laws.measured(cells, series, MOST_FAMILIES * (1 if last else 2))
    ends = [list(dict.fromkeys([steps[0], steps[-1]]))[: 1 + last] for steps in shown.values()]
    columns = max(map(len, ends))
    beside = 2 if columns == 1 and len(shown) > 1 else 1
    page, grid = laws.panels(list(shown), columns, ratio=0.58, beside=beside)
    inches = page.get_figwidth() / (columns * beside) - 0.6
    drawn: list[laws.RankLaw] = []
    for panels, family, steps in zip(grid, shown, ends, strict=True):
        for ax, step in style.each(panels, steps):
            found = laws.laws(family, series, tables.exponents, step, **where)
            laws.draw(ax, found, family, f"step {step}", inches)
            drawn += found
        style.y_axis(panels, quantity.name, f"{quantity.symbol} {unit}".strip(), log=True)
    return style.finish(page, laws.fine_print(drawn), on_batch(), left_out)


@style.paper()
def activation_moments_vs_rank(tables: Tables) -> Figure:
    """Mean absolute value, rms and fourth moment of the adapter output ``gamma B A x`` against the
    rank, at the last probed step, on the training batch (or the held-out one).

    A point is a cell's mean over layers of the log statistic: sums over layers would show only the
    layer with the most energy. Bars span the 5th to 95th percentile over layers.
    """
    probes = tables.probes
    batches = set(probes.loc[probes["site"] == SITE, "batch"]) if len(probes) else set()
    batch = HELDOUT if batches == {HELDOUT} else TRAIN
    moments = {stat: probed(tables, SITE, stat, batch) for stat in MOMENTS}
    moments = {stat: series for stat, series in moments.items() if len(series)}
    if not moments:
        raise Absent(f"no positive {SITE} moment in the tables")
    first = next(iter(moments.values()))
    shown, left_out = laws.measured(cells_of(tables.cells, first, f"{SITE} moments"), first)

    page, grid = laws.panels(list(shown), len(moments), ratio=0.85, column=style.FULL)
    inches = page.get_figwidth() / len(moments) - 0.35
    drawn: list[laws.RankLaw] = []
    for panels, (family, steps) in zip(grid, shown.items(), strict=True):
        for ax, (stat, series) in zip(panels, moments.items(), strict=True):
            where = {"site": SITE, "stat": stat, "batch": batch}
            found = laws.layer_laws(family, series, tables.exponents, steps[-1], **where)
            laws.draw(ax, found, family, f"{STATS[stat].label}  {MOMENTS[stat]}", inches)
            drawn += found
        unit = f"$y$ = {SITES[SITE].symbol} at step {steps[-1]}"
        style.y_axis(panels, SITES[SITE].label, unit, log=True)
    return style.finish(
        page,
        "⟨·⟩: mean over tokens and features.",
        on_batch(batch),
        laws.fine_print(drawn, laws.PER_LAYER, inches=inches),
        left_out,
    )


@style.paper()
def conditions(tables: Tables) -> Figure:
    """Rms of the adapter output and of the gradient that the adapter passes to its inputs, on the
    training batch, against the rank, with fitted lines and predicted finite-rank curves.

    The step is the last one with a prediction, or the last probed step if none has one. A curve is
    predicted up to a factor, which is fitted to the data: compare shapes. A curve needs each
    layer's D and, for the output, its r_align (SGD) or r_sign (sign-like):
    ``probes.stats=[all,r_align,r_sign]``.
    """
    series = {one: probed(tables, one.site, one.stat) for one in (FORWARD_OUT, BACKWARD_IN)}
    if any(rows.empty for rows in series.values()):
        raise Absent("no rms of both adapter_out and adapter_in_grad in the tables")
    both = pd.concat(list(series.values()), ignore_index=True)
    shown, left_out = laws.measured(cells_of(tables.cells, both, "adapter_out rms"), both)

    page, grid = laws.panels(list(shown), 2, ratio=0.58, more=2, sharey=False)
    inches = page.get_figwidth() / 2 - 0.6
    drawn: list[laws.RankLaw] = []
    layers: list[int] = []  # of each predicted curve
    for panels, (family, steps) in zip(grid, shown.items(), strict=True):
        step = max((s for s in steps if s <= LAST_PREDICTED_STEP), default=steps[-1])
        for ax, (quantity, rows) in zip(panels, series.items(), strict=True):
            where = {"site": quantity.site, "stat": quantity.stat}
            found = laws.layer_laws(family, rows, tables.exponents, step, **where)
            curves = {law.rule: line for law in found if (line := _draw_curve(ax, law, tables))}
            layers += [int(law.fit["layers"]) for law in found if law.rule in curves]  # type: ignore[index]
            heading = f"{quantity.noun} ({quantity.name}):  {quantity.symbol}"
            more = dict(zip(["theory"], curves.values(), strict=False))
            laws.draw(ax, found, family, heading, inches, more=more, curved=curves)
            unit = "mean over layers of the log"
            style.y_axis([ax], f"{quantity.stat} at step {step}", unit, log=True)
            drawn += found
    if layers:
        on_curves = (
            f"Dashed: predicted finite-rank curve, mean over {span(layers)} layers of the log, "
            "through the mean of the data."
        )
    else:
        on_curves = "No predicted curve: the table of exponents has no prediction for these rows."
    points = laws.fine_print(drawn, laws.PER_LAYER, straight=not layers)
    return style.finish(page, points, on_curves, on_batch(), left_out)


def _draw_curve(ax: Axes, law: laws.RankLaw, tables: Tables) -> Line2D | None:
    """The curve whose slope is the prediction, through the mean of the points, or None."""
    if law.fit is None:
        return None
    ends = np.geomspace(law.fit["rank_min"], law.fit["rank_max"], 65)
    ranks = np.union1d(law.rank, ends)
    log = predicted_curve(law.fit, tables.exponents, tables.cells, tables.probes, ranks)
    if log is None:
        return None
    level = np.mean(np.log(law.value) - np.interp(np.log(law.rank), np.log(ranks), log))
    gid = f"curve {style.gid(law.rule)}"
    (line,) = ax.plot(ranks, np.exp(log + level), gid=gid, **style.THEORY)
    return line
