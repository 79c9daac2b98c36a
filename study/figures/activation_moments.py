"""Moments of the adapter output against the rank: the forward condition of rank stability."""

import pandas as pd
from matplotlib.figure import Figure

from study.figures import laws, style
from study.figures.captions import on_batch
from study.figures.selection import Absent, Tables, holding, per_layer
from study.vocabulary.quantities import FORWARD_OUT, HELDOUT, SITES, STATS, TRAIN

SITE = FORWARD_OUT.site
MOMENTS = {
    "mean_abs": r"$\langle|y|\rangle$",
    "rms": r"$\langle y^2\rangle^{1/2}$",
    "m4": r"$\langle y^4\rangle^{1/4}$",
}
MOST_FAMILIES = 3


@style.paper()
def activation_moments_vs_rank(tables: Tables) -> Figure:
    """Mean absolute value, rms and fourth moment of the adapter output ``gamma B A x`` against the
    rank, at the last probed step, on the training batch (on a held-out one if that alone was
    probed).

    A point is a cell's mean over layers of the log statistic: sums over layers would show only the
    layer with the most energy. Bars span the 5th to 95th percentile over layers.
    """
    batch = _batch(tables.probes)
    moments = {stat: per_layer(tables.cells, tables.probes, SITE, stat, batch) for stat in MOMENTS}
    moments = {stat: series for stat, series in moments.items() if len(series)}
    if not moments:
        raise Absent(f"no positive {SITE} moment in the tables")
    first = next(iter(moments.values()))
    cells = holding(tables.cells, first, f"{SITE} moments")
    shown, left_out = laws.measured(cells, first, MOST_FAMILIES)

    families = [one.family for one in shown]
    page, grid = laws.panels(families, len(moments), ratio=0.85, column=style.FULL)
    inches = page.get_figwidth() / len(moments) - 0.35
    drawn: list[laws.Law] = []
    for panels, one in zip(grid, shown, strict=True):
        step = one.steps[-1]
        for ax, (stat, series) in zip(panels, moments.items(), strict=True):
            where = laws.over_layers(SITE, stat, batch)
            found = laws.layer_laws(one.family, series, tables.exponents, step, where)
            heading = f"{STATS[stat].label}  {MOMENTS[stat]}"
            laws.draw(ax, found, one.family, heading=heading, inches=inches)
            drawn += found
        style.y_label(panels[0], SITES[SITE].label, f"$y$ = {SITES[SITE].symbol} at step {step}")
        style.log_axis(panels)
    return style.finish(
        page,
        "⟨·⟩: mean over tokens and features.",
        on_batch(batch),
        laws.fine_print(drawn, laws.PER_LAYER, inches=inches),
        left_out,
        shown=families,
    )


def _batch(probes: pd.DataFrame) -> str:
    """The training batch if it was probed, else the held-out batch."""
    batches = set(probes.loc[probes["site"] == SITE, "batch"]) if len(probes) else set()
    return HELDOUT if batches == {HELDOUT} else TRAIN
