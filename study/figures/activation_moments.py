"""Moments of the adapter output against the rank: the forward condition of rank stability."""

from matplotlib.figure import Figure

from study.figures import laws, style
from study.figures.captions import on_batch
from study.figures.selection import Absent, Tables, cells_of, probed
from study.vocabulary.quantities import FORWARD_OUT, HELDOUT, SITES, STATS, TRAIN

SITE = FORWARD_OUT.site
MOMENTS = {
    "mean_abs": r"$\langle|y|\rangle$",
    "rms": r"$\langle y^2\rangle^{1/2}$",
    "m4": r"$\langle y^4\rangle^{1/4}$",
}


@style.paper()
def activation_moments_vs_rank(tables: Tables) -> Figure:
    """Mean absolute value, rms and fourth moment of the adapter output ``gamma B A x`` against the
    rank, at the last probed step, on the training batch (on a held-out one if that alone was
    probed).

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
    drawn: list[laws.Law] = []
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
