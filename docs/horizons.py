"""The test of three scaling rules where people train: README's figure and its table."""

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scipy.interpolate import CubicSpline

from docs.blocks import Block, study_tables
from study.analysis.fits import mean_interval
from study.analysis.losses import final_losses
from study.analysis.wording import interval_text
from study.figures import style
from study.report.text import minus, table
from study.vocabulary.quantities import HELDOUT
from study.vocabulary.scaling import RULES
from study.vocabulary.sources import model_label

STUDY, PARTS = "horizons_small", "r_sign_over_training"
TITLES = {
    "lora": "LoRA, γ = α/r",
    "rslora": "rsLoRA, γ = α/√r",
    "crossover": "crossover, γ = α/√(r(r + 40))",
}
TUNED = 16
"""The rank whose best rate the other ranks keep."""


def losses(steps: str) -> pd.DataFrame:
    """Final held-out losses of the study: ``scaling``, ``rank``, ``seed``, ``lr``, ``loss``."""
    tables = study_tables(STUDY)
    found = final_losses(tables.cells, tables.metrics)
    return found[found["steps"] == int(steps)].dropna(subset="loss")


def basins(runs: pd.DataFrame) -> pd.DataFrame:
    """By scaling, seed and rank, the loss on a fine grid of log rates (columns): a cubic spline."""
    x = np.log(runs["lr"])
    fine = np.linspace(x.min(), x.max(), 400)
    rows = {}
    for place, own in runs.groupby(["scaling", "seed", "rank"]):
        own = own.sort_values("lr")
        lr = np.log(own["lr"].to_numpy())
        curve = CubicSpline(lr, own["loss"].to_numpy())(fine)
        rows[place] = np.where(fine <= lr[-1] + 1e-9, curve, np.nan)
    index = pd.MultiIndex.from_tuples(rows, names=["scaling", "seed", "rank"])
    return pd.DataFrame(list(rows.values()), index, fine)


def kept(curves: pd.DataFrame) -> pd.DataFrame:
    """By seed of one rule: what all ranks lose at the best rate of rank :data:`TUNED`.

    ``spread``: the largest best rate over the smallest. ``regret``: the mean over the other ranks
    of the loss at the kept rate less the loss at the rank's own best one, nats per token. ``gain``:
    the best loss of the lowest rank less that of the highest one. ``share``: regret over gain.
    """
    rows = []
    for seed, own in curves.groupby("seed"):
        own = own.droplevel(["scaling", "seed"])
        best, lowest = own.idxmin(axis=1), own.min(axis=1)
        regret = own[best[TUNED]] - lowest
        gain = lowest.iloc[0] - lowest.iloc[-1]
        mean = regret.drop(TUNED).mean()
        rows.append((seed, np.exp(best.max() - best.min()), mean, gain, mean / gain))
    return pd.DataFrame(rows, columns=["seed", "spread", "regret", "gain", "share"])


def rules_test(steps: str) -> str:
    """A row per rule: how far the best rates of the ranks lie apart, and what one rate costs."""
    curves, rates = basins(losses(steps)), study_tables(STUDY).rates
    ranks = sorted(rates["rank"].unique())
    heads = ["rule", *(f"rank {rank:g}" for rank in ranks), "largest / smallest"]
    heads += ["regret at the best rate of rank 16, nats", "the same, share of the ranks' gain"]
    body = []
    for rule in TITLES:
        own = rates[(rates["scaling"] == rule) & (rates["steps"] == int(steps))]
        best = np.exp(np.log(own["best_lr"]).groupby(own["rank"]).mean())
        found = kept(curves.loc[[rule]])
        texts = [
            interval_text(*mean_interval(found[one]), places=places)
            for one, places in (("regret", 4), ("share", 2))
        ]
        spread = f"{best.max() / best.min():.2f}"
        body.append([RULES[rule].label, *(f"{best[rank]:.2g}" for rank in ranks), spread, *texts])
    return minus(table(heads, body))


@style.paper()
def hero(steps: str = "256", stacked: bool = False) -> Figure:
    """A panel per rule, a line per rank over one axis of rates; dots are the best rates."""
    runs = losses(steps)
    curves = basins(runs)
    size, grid = ((3.6, 6.4), (3, 1)) if stacked else ((7.2, 2.7), (1, 3))
    page = Figure(figsize=size, layout="constrained")
    panels = page.subplots(*grid, sharex=True, sharey=True).ravel()
    for ax, rule in zip(panels, TITLES, strict=True):
        draw(ax, runs[runs["scaling"] == rule], curves.loc[rule])
        ax.set_title(TITLES[rule], fontsize=9)
    mean = runs.groupby(["scaling", "rank", "lr"])["loss"].mean()
    panels[0].set_ylim(mean.min() - 0.01, mean.min() + 0.25)
    for ax in panels if stacked else panels[:1]:
        ax.set_ylabel("held-out loss\n(nats per byte)")
    for ax in panels[-1:] if stacked else panels:
        ax.set_xlabel("learning rate")
    handles, labels = panels[0].get_legend_handles_labels()
    page.legend(handles, labels, loc="outside lower center", ncols=3 if stacked else 5, fontsize=8)
    return page


def draw(ax: Axes, runs: pd.DataFrame, curves: pd.DataFrame) -> None:
    """The mean loss over seeds by rank, and the best rate of each rank."""
    ranks, colours = sorted(runs["rank"].unique()), matplotlib.colormaps["viridis"]
    means = curves.groupby("rank").mean()
    for index, rank in enumerate(ranks):
        colour = colours(0.95 - 0.95 * index / (len(ranks) - 1))
        look: dict[str, Any] = {"color": colour, "zorder": 2 + index}
        curve, own = means.loc[rank], runs[runs["rank"] == rank].groupby("lr")["loss"].mean()
        ax.plot(np.exp(curve.index), curve, lw=1.2, label=f"rank {rank:g}", **look)
        ax.plot(own.index, own, ".", ms=3, **look)
        ax.plot(np.exp(curve.idxmin()), curve.min(), "o", ms=6, mec="white", mew=0.7, **look)
    ax.set_xscale("log")
    ax.set_xticks(sorted(runs["lr"].unique()))
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:.4f}".rstrip("0"))
    ax.xaxis.set_minor_locator(NullLocator())


def parts() -> str:
    """r_parts on held-out rows by step: the median over layers. Where the parts work against each
    other, it counts as infinite."""
    tables, of_cell = study_tables(PARTS), ["model", "scaling", "lr", "batch_size", "rank"]
    names = {"model": str, "scaling": str}
    found = tables.probes.merge(tables.cells[["cell_id", *of_cell]].astype(names), on="cell_id")
    found = found[(found["batch"] == HELDOUT) & found["r_parts"].notna()]
    found["value"] = found["r_parts"].where(found["r_parts"] > 0, np.inf)
    by_step = found.groupby([*of_cell, "step"])["value"].median().unstack("step")
    heads = ["model", "rule", "rate", "sequences", "rank", *(f"step {step}" for step in by_step)]
    rows = sorted(by_step.iterrows(), key=lambda row: (row[0][0] != "small", *row[0][:2]))
    body = []
    for (model, rule, *own), values in rows:
        texts = ["" if np.isnan(value) else f"{value:.0f}".replace("inf", "∞") for value in values]
        body.append([model_label(model), RULES[rule].label, *(f"{x:g}" for x in own), *texts])
    return table(heads, body)


BLOCKS: dict[str, Block] = {"rules-test": rules_test, "r-parts": parts}
