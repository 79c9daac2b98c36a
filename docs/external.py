"""A sweep over rank and learning rate that others ran: how its best rate goes with the rank.

``results/external/tinker_sft_sweep.csv`` holds the numbers of ``sft_sweep.md`` in tinker-cookbook
(thinking-machines-lab, commit 9dfcc3a2): 35 models, ranks 1 to 128, LoRA under Adam on tulu3, 780
steps of 128 sequences. Columns: model, learning rate, rank, test loss, training loss.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from docs.blocks import ROOT
from study.analysis.fits import mean_interval
from study.analysis.losses import INSIDE
from study.analysis.rates import bottom
from study.analysis.wording import interval_text
from study.figures import style
from study.report.text import minus

TABLE = ROOT / "results/external/tinker_sft_sweep.csv"
LEAST_RANKS = 3
R_SIGN = 12
"""Of the theory's curve, as measured on SmolLM2; it is not known of these models."""


def best_rates() -> dict[str, dict[int, float]]:
    """By model and rank: the vertex of the parabola through the lowest loss and its neighbours.

    A rank whose lowest loss is at the end of its rates is left out.
    """
    found: dict[str, dict[int, float]] = {}
    runs = pd.read_csv(TABLE).groupby(["model", "rank", "lr"], as_index=False)["nll"].mean()
    for (model, rank), here in runs.groupby(["model", "rank"]):
        best = bottom(here["lr"].to_numpy(), here["nll"].to_numpy())
        if best.edge == INSIDE:
            found.setdefault(model, {})[int(rank)] = best.lr
    return found


def exponents() -> pd.DataFrame:
    """Per model the exponent of the best rate with the rank, and the theory's.

    A model with fewer than :data:`LEAST_RANKS` best rates is left out. ``low``, ``high``: a 95 %
    interval, with the scatter of the ranks about their lines pooled over models. ``predicted``: the
    slope over the same ranks of the rate at which a step moves the adapter's output equally at
    p = 1. That of equal descents is 0.
    """
    rows, scatter, df = [], 0.0, 0
    for model, best in best_rates().items():
        if len(best) < LEAST_RANKS:
            continue
        rank = np.array(list(best), float)
        x, y = np.log(rank), np.log(list(best.values()))
        line, spread = stats.linregress(x, y), ((x - x.mean()) ** 2).sum()
        scatter += ((y - line.intercept - line.slope * x) ** 2).sum()
        df += len(x) - 2
        theory = stats.linregress(x, (x - np.log(rank - 1 + R_SIGN)) / 2).slope
        rows.append((model, len(x), line.slope, spread, theory))
    found = pd.DataFrame(rows, columns=["model", "ranks", "exponent", "spread", "predicted"])
    half = stats.t.ppf(0.975, df) * np.sqrt(scatter / df / found["spread"])
    found = found.assign(low=found["exponent"] - half, high=found["exponent"] + half)
    return found.sort_values("exponent", ignore_index=True)


def external() -> str:
    """The pooled exponent, how many intervals hold zero, and how well theory fits."""
    found = exponents()
    pooled = interval_text(*mean_interval(found["exponent"]), places=2)
    zero = int(((found["low"] <= 0) & (found["high"] >= 0)).sum())
    between = np.corrcoef(found["predicted"], found["exponent"])[0, 1]
    return minus(
        f"{pooled} (mean of {len(found)} models; theory: 0 by the descent, which lies in {zero} of "
        f"their intervals, and {found['predicted'].mean():.2f} by the output, whose correlation "
        f"with it over models is {between:.2f})"
    )


@style.paper()
def external_rates() -> Figure:
    """The exponent of the best rate of every model, measured and predicted."""
    found = exponents()
    figure = Figure(figsize=(6.5, 0.19 * len(found) + 0.9), layout="constrained")
    axis, place = figure.subplots(), np.arange(len(found))
    off = np.abs(found[["low", "high"]].to_numpy().T - found["exponent"].to_numpy())
    axis.errorbar(found["exponent"], place, xerr=off, fmt="o", ms=3, lw=1, label="measured, 95 %")
    axis.plot(found["predicted"], place, "x", ms=4, color="black", label="theory, equal output")
    axis.axvline(0, color="black", lw=0.8, ls=":", label="theory, equal descent")
    axis.set_yticks(place, [name.rpartition("/")[2] for name in found["model"]], fontsize=6)
    axis.set_xlim(-0.15, 0.5)
    axis.set_xlabel("exponent of the best learning rate with the rank, LoRA's alpha / r")
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=7)
    return figure
