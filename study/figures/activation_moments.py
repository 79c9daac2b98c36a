"""The moments of what the adapters add to their layers, against the rank: the forward half of rank stability."""

import dataclasses

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from study.figures import laws, style
from study.figures.selection import Absent, Family, Tables, holding, per_layer

MOMENTS = {
    "mean_abs": r"mean absolute  $\langle|y|\rangle$",
    "rms": r"root mean square  $\langle y^2\rangle^{1/2}$",
    "m4": r"fourth moment  $\langle y^4\rangle^{1/4}$",
}
MOST_FAMILIES = 4
HELDOUT = " of a held-out batch"


@style.paper()
def activation_moments_vs_rank(tables: Tables) -> Figure:
    """Mean absolute value, root mean square and fourth moment of ``y = gamma B A x`` against the rank, at the end.

    A point is one cell's mean over layers of the log statistic, never a pool over layers, which would show the one
    layer that holds most of the energy. Bars are the 5th to 95th percentile over layers.
    """
    batch = _batch(tables.probes)
    moments = {
        stat: per_layer(tables.cells, tables.probes, "adapter_out", stat, batch) for stat in MOMENTS
    }
    moments = {stat: series for stat, series in moments.items() if len(series)}
    if not moments:
        raise Absent("no positive adapter_out moment in the tables")
    first = next(iter(moments.values()))
    shown, left_out = laws.measured(
        holding(tables.cells, first, "adapter_out moments"), first, MOST_FAMILIES
    )

    entries = 2 * max(len(one.family.rules) for one in shown) + 1
    page = style.figure(
        len(shown), len(moments), ratio=0.85, above=0.3 + 0.14 * entries * len(shown)
    )
    inches = page.get_figwidth() / len(moments) - 0.35
    drawn: list[laws.Law] = []
    for part, one in zip(style.rows(page, [o.family.label for o in shown]), shown, strict=True):
        step = one.steps[-1]
        panels = part.subplots(1, len(moments), sharey=True, squeeze=False)[0]
        for ax, (stat, series) in zip(panels, moments.items(), strict=True):
            where = {
                "site": "adapter_out",
                "stat": stat,
                "batch": batch,
                "layer": "mean_log",
                "kind": "all",
            }
            found = layer_laws(
                one.family, series[series["step"] == step], tables.exponents, step, where
            )
            laws.draw(ax, found, one.family, heading=MOMENTS[stat], inches=inches)
            drawn += found
        style.y_label(panels[0], "adapter output", rf"$y = \gamma BAx$ at step {step}")
        style.log_axis(panels)
    point = "one per seed, the mean over layers of the log; bars: 5–95% of layers"
    return style.finish(
        page,
        f"⟨·⟩: over tokens and features{HELDOUT if batch == 'heldout' else ''}.",
        laws.fine_print(drawn, point),
        left_out,
    )


def layer_laws(
    family: Family, at_step: pd.DataFrame, exponents: pd.DataFrame, step: int, where: dict[str, str]
) -> list[laws.Law]:
    """The laws of the mean over layers of the log statistic, each with its spread over layers."""
    cells = family.cells[["cell_id", "rule", "rank", "seed"]]
    logs = at_step.assign(log=np.log(at_step["value"])).merge(
        cells[np.isfinite(cells["rank"])], on="cell_id"
    )
    # As the fits do: within a seed the same layers at every rank, or a layer that drops out would pass for a slope.
    beside = logs.groupby(["rule", "seed"])["cell_id"].transform("nunique")
    having = logs.groupby(["rule", "seed", "layer"])["cell_id"].transform("nunique")
    logs = logs[having == beside]
    means = (
        np.exp(logs.groupby("cell_id")["log"].mean()).reset_index(name="value").assign(step=step)
    )
    found = []
    for law in laws.laws(family, means, exponents, step=step, **where):
        layers = (
            logs[logs["rule"] == law.rule].groupby(["rank", "layer"])["log"].mean().groupby("rank")
        )
        spread = pd.DataFrame(
            {"low": np.exp(layers.quantile(0.05)), "high": np.exp(layers.quantile(0.95))}
        )
        found.append(dataclasses.replace(law, spread=spread))
    return found


def _batch(probes: pd.DataFrame) -> str:
    """The training batch where it was probed, else the held-out one."""
    batches = set(probes.loc[probes["site"] == "adapter_out", "batch"]) if len(probes) else set()
    return "heldout" if batches == {"heldout"} else "train"
