"""The forward and the backward condition of rank stability, with predicted finite-rank curves.

Kalajdzievski 2023 (theorem 3.2): the outputs of an adapter must not depend on the rank, nor the
gradients that it passes to its inputs. Both grow along ``r (r - 1 + rho)``, with different
crossovers rho: about 5 forward on real text, about D backward.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from study.analysis import predicted_curve
from study.figures import laws, style
from study.figures.captions import on_batch, span
from study.figures.selection import Absent, Rule, Tables, holding, per_layer
from study.vocabulary.quantities import BACKWARD_IN, FORWARD_OUT
from study.vocabulary.thresholds import LAST_PREDICTED_STEP

MOST_FAMILIES = 3


@dataclass(frozen=True)
class Predicted:
    """A finite-rank curve: ``log[i]`` at ``ranks[i]``, up to a constant.

    ``layers``: the number of layers of which it is the mean.
    """

    ranks: np.ndarray
    log: np.ndarray
    layers: int


@style.paper()
def conditions(tables: Tables) -> Figure:
    """Rms of the adapter output and of the gradient that the adapter passes to its inputs, on the
    training batch, against the rank, with fitted lines and predicted finite-rank curves.

    The step is the last one with a prediction, or the last probed step if none has one. A curve is
    predicted up to a factor, which the data set: compare shapes. A curve needs each layer's D and,
    for the output, its r_align (SGD) or r_sign (sign-like): ``probes.stats=[all,r_align,r_sign]``.
    """
    series = {
        quantity: per_layer(tables.cells, tables.probes, quantity.site, quantity.stat)
        for quantity in (FORWARD_OUT, BACKWARD_IN)
    }
    if any(rows.empty for rows in series.values()):
        raise Absent("no rms of both adapter_out and adapter_in_grad in the tables")
    both = pd.concat(list(series.values()), ignore_index=True)
    cells = holding(tables.cells, both, "adapter_out rms")
    shown, left_out = laws.measured(cells, both, MOST_FAMILIES)

    families = [one.family for one in shown]
    page, grid = laws.panels(families, 2, ratio=0.58, more=2, sharey=False)
    inches = page.get_figwidth() / 2 - 0.6
    drawn: list[laws.Law] = []
    known: list[Predicted] = []
    for panels, one in zip(grid, shown, strict=True):
        step = max((s for s in one.steps if s <= LAST_PREDICTED_STEP), default=one.steps[-1])
        for ax, (quantity, rows) in zip(panels, series.items(), strict=True):
            where = laws.over_layers(quantity.site, quantity.stat)
            found = laws.layer_laws(one.family, rows, tables.exponents, step, where)
            curves = _curves(found, tables)
            lines = [_draw_curve(ax, law, curves[law.rule]) for law in found if law.rule in curves]
            heading = f"{quantity.noun} ({quantity.name}):  {quantity.symbol}"
            theory = [(line, "theory") for line in lines[:1]]
            options = style.keywords(heading=heading, inches=inches, curved=set(curves))
            laws.draw(ax, found, one.family, more=theory, **options)
            style.y_label(ax, f"{quantity.stat} at step {step}", "mean over layers of the log")
            style.log_axis([ax])
            drawn += found
            known += curves.values()
    return style.finish(
        page,
        laws.fine_print(drawn, laws.PER_LAYER, straight=not known),
        _on_curves(known),
        on_batch(),
        left_out,
        shown=families,
    )


def _curves(found: list[laws.Law], tables: Tables) -> dict[Rule, Predicted]:
    """By rule: the curves whose slopes are the predictions of the table."""
    curves = {}
    for law in found:
        if law.fit is None or not np.isfinite(law.fit["predicted"]):
            continue
        ends = np.geomspace(law.fit["rank_min"], law.fit["rank_max"], 65)
        ranks = np.union1d(law.rank, ends)
        log = predicted_curve(law.fit, tables.exponents, tables.cells, tables.probes, ranks)
        if log is not None:
            curves[law.rule] = Predicted(ranks, log, int(law.fit["layers"]))
    return curves


def _on_curves(known: list[Predicted]) -> str:
    if not known:
        return "No predicted curve: the table of exponents has no prediction for these rows."
    layers = span(one.layers for one in known)
    return (
        f"Dashed: predicted finite-rank curve, mean over {layers} layers of the log, through the "
        "mean of the data."
    )


def _draw_curve(ax: Axes, law: laws.Law, predicted: Predicted) -> Line2D:
    """Draw the curve through the mean of the points. gid: ``curve <scaling> p=<p>``."""
    at_points = np.interp(np.log(law.rank), np.log(predicted.ranks), predicted.log)
    level = np.mean(np.log(law.value) - at_points)
    height = np.exp(predicted.log + level)
    (line,) = ax.plot(predicted.ranks, height, gid=f"curve {style.gid(law.rule)}", **style.THEORY)
    return line
