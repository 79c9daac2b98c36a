"""The forward and the backward condition of rank stability, with predicted finite-rank curves.

Kalajdzievski 2023 (theorem 3.2): the outputs of an adapter must not depend on the rank, nor the
gradients that it passes to its inputs. Both grow along ``r (r - 1 + rho)``, with different
crossovers rho: about 5 forward on real text, about D backward.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from study.analysis import predicted_curve
from study.figures import laws, style
from study.figures.captions import on_batch, span
from study.figures.selection import Absent, Tables, cells_of, probed
from study.vocabulary.quantities import BACKWARD_IN, FORWARD_OUT
from study.vocabulary.thresholds import LAST_PREDICTED_STEP


@style.paper()
def conditions(tables: Tables) -> Figure:
    """Rms of the adapter output and of the gradient that the adapter passes to its inputs, on the
    training batch, against the rank, with fitted lines and predicted finite-rank curves.

    The step is the last one with a prediction, or the last probed step if none has one. A curve is
    predicted up to a factor, which the data set: compare shapes. A curve needs each layer's D and,
    for the output, its r_align (SGD) or r_sign (sign-like): ``probes.stats=[all,r_align,r_sign]``.
    """
    series = {one: probed(tables, one.site, one.stat) for one in (FORWARD_OUT, BACKWARD_IN)}
    if any(rows.empty for rows in series.values()):
        raise Absent("no rms of both adapter_out and adapter_in_grad in the tables")
    both = pd.concat(list(series.values()), ignore_index=True)
    shown, left_out = laws.measured(cells_of(tables.cells, both, "adapter_out rms"), both)

    page, grid = laws.panels(list(shown), 2, ratio=0.58, more=2, sharey=False)
    inches = page.get_figwidth() / 2 - 0.6
    drawn: list[laws.Law] = []
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


def _draw_curve(ax: Axes, law: laws.Law, tables: Tables) -> Line2D | None:
    """The curve whose slope is the prediction of the table, through the mean of the points.

    None if there is no prediction. gid: ``curve <scaling> p=<p>``.
    """
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
