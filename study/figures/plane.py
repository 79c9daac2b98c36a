"""The plane of alpha and learning rate: the loss over it at each rank, the best pairs of all ranks,
and the loss against rho (:mod:`study.analysis.plane`).
"""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation

from study.analysis.plane import FEWEST_SEEDS, best_pairs, lowest_losses, runs
from study.analysis.wording import settings
from study.figures import style
from study.figures.selection import Absent, Tables

LEVELS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Nats above the lowest loss, between which the filled contours change their colour."""
COLOURS = matplotlib.colormaps["YlGnBu_r"]
LONGEST = 4.5
"""Two runs are neighbours if neither alpha nor rate differs by more than this factor."""
MOST_RANKS = 5
FEWEST_ALPHAS = 3
NEAR = 0.003
"""Nats above the lowest loss, inside the line of :func:`best_pairs_by_rank`."""


@style.paper()
def alpha_plane(tables: Tables) -> Figure:
    """Held-out loss above the lowest, over alpha and learning rate, one panel per rank. The star is
    the best pair, with its 95 % interval over seeds.

    Alpha is gamma times the rank, LoRA's alpha. Dots are runs; losses are means over seeds of the
    difference from the lowest vertex of the seed and rank. Vertical lines are what users set: LoRA
    at alpha 16, rsLoRA at alpha 16, alpha twice the rank, and LoRA+ with ratio 16 at alpha 16,
    which trains as alpha 256 does.
    """
    found = _of_largest(tables)
    lowest = lowest_losses(found)
    pairs = best_pairs(lowest).set_index("rank")
    ranks = sorted(lowest["rank"].unique())[-MOST_RANKS:]
    page = style.figure(1, len(ranks), ratio=1.35, above=0.5)
    panels = page.subplots(1, len(ranks), sharex=True, sharey=True, squeeze=False)[0]
    filled = None
    for ax, rank in zip(panels, ranks, strict=True):
        above = _above_lowest(found[found["rank"] == rank], lowest[lowest["rank"] == rank])
        filled = _contours(ax, above) or filled
        ax.plot(above["alpha"], above["lr"], ".", color=style.INK, markersize=1.2, gid="runs")
        _ways(ax, rank)
        if rank in pairs.index:
            _star(ax, pairs.loc[rank])
        ax.set_title(f"rank {rank:g}")
        _alpha_axis(ax)
    _limit(panels, found)
    style.y_axis(panels, "learning rate", log=True)
    if filled is not None:
        bar = page.colorbar(filled, ax=list(panels), location="right", aspect=30, pad=0.01)
        bar.set_label("loss above the lowest, nats")
    page.set_label(settings(_cells(tables, found)))
    return style.finish(
        page,
        "Stars: the lowest loss; bars: 95 % CI over seeds. Dots: runs. Hatched: more than "
        f"{LEVELS[-1]:g} nats above the lowest, or diverged.",
        "Lines: LoRA at α = 16 (solid), rsLoRA at α = 16 (dashed), α = 2r (dotted), and LoRA+ with "
        "ratio 16 at α = 16 (dash-dotted).",
    )


@style.paper()
def best_pairs_by_rank(tables: Tables) -> Figure:
    """The best pair of alpha and learning rate of every rank on one plane.

    Stars are the best pairs, bars their 95 % intervals over seeds. A line surrounds the pairs that
    cost at most 0.003 nats more than the best one of the rank.
    """
    found = _of_largest(tables)
    lowest = lowest_losses(found)
    pairs = best_pairs(lowest).set_index("rank")
    if pairs.empty:
        raise Absent("best pairs need a rank whose best alpha and rate are inside those tried")
    colours = _colours(lowest["rank"])
    page = style.figure(1, 1, column=style.HALF, ratio=0.8, above=0.5)
    ax = page.subplots()
    for rank, colour in colours.items():
        above = _above_lowest(found[found["rank"] == rank], lowest[lowest["rank"] == rank])
        grid = _triangles(above)
        if grid is not None:
            ax.tricontour(grid, above["above"], [NEAR], colors=[colour], linewidths=0.9)
        if rank in pairs.index:
            _star(ax, pairs.loc[rank], colour)
    _alpha_axis(ax)
    _limit([ax], found)
    style.y_axis([ax], "learning rate", log=True)
    style.legend(page, {f"rank {rank:g}": {"color": c} for rank, c in colours.items()}, columns=3)
    page.set_label(settings(_cells(tables, found)))
    return style.finish(page, f"Lines: {NEAR:g} nats above the lowest loss of a rank.")


@style.paper()
def loss_against_rho(tables: Tables) -> Figure:
    """Lowest loss over the learning rate against rho at that rate, one line per rank and one point
    per alpha.

    Rho is |dA x| / |A0 x| at the end of the run: how far A has moved. Losses are means over seeds
    of the difference from the lowest vertex of the seed and rank.
    """
    found = _of_largest(tables)
    lowest = lowest_losses(found).dropna(subset=["loss", "rho"])
    if lowest.empty:
        raise Absent("the loss against rho needs rho of A: train with probes.stats=[all,rho]")
    base = lowest.groupby(["rank", "seed"])["loss"].transform("min")
    points = lowest.assign(above=lowest["loss"] - base, log_rho=np.log(lowest["rho"]))
    points = points.groupby(["rank", "alpha"], as_index=False)[["above", "log_rho"]].mean()
    colours = _colours(points["rank"])
    page = style.figure(1, 1, column=style.HALF, ratio=0.75, above=0.5)
    ax = page.subplots()
    for rank, colour in colours.items():
        own = points[points["rank"] == rank].sort_values("log_rho")
        ax.plot(np.exp(own["log_rho"]), own["above"], color=colour, **style.DOTS)
    ax.set_xscale("log")
    style.log_ticks(ax.xaxis, (lowest["rho"].min(), lowest["rho"].max()))
    ax.set_xlabel(r"$\rho = |\Delta A\,x| / |A_0\,x|$ at the best learning rate")
    style.y_axis([ax], "loss above the lowest", "nats per token")
    style.legend(page, {f"rank {rank:g}": {"color": c} for rank, c in colours.items()}, columns=3)
    page.set_label(settings(_cells(tables, found)))
    return style.finish(page, "A point is an alpha, at its best rate.")


def _colours(ranks: "pd.Series[float]") -> dict[float, tuple[float, ...]]:
    """By rank, in ascending order, a colour that is darker for a higher rank."""
    every = sorted(ranks.unique())
    shades = matplotlib.colormaps["viridis"](np.linspace(0.85, 0.0, len(every)))
    return dict(zip(every, map(tuple, shades), strict=True))


def _limit(panels: Sequence[Axes], found: pd.DataFrame) -> None:
    """Show the runs, and not whole intervals that are wider than their range."""
    for name, set_limits in (("alpha", Axes.set_xlim), ("lr", Axes.set_ylim)):
        low, high = found[name].min(), found[name].max()
        margin = (high / low) ** 0.06
        set_limits(panels[0], low / margin, high * margin)


def _alpha_axis(ax: Axes) -> None:
    ax.set_xscale("log", base=4)
    ax.xaxis.set_major_locator(ticker.LogLocator(base=16))
    ax.xaxis.set_minor_locator(ticker.LogLocator(base=4))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    ax.set_xlabel(r"$\alpha = \gamma r$")


def _of_largest(tables: Tables) -> pd.DataFrame:
    """The runs of the setting that has most of them, if it has a plane."""
    found = runs(tables.cells, tables.metrics, tables.probes)
    sizes = found.groupby("setting").agg(
        alphas=("alpha", "nunique"), rates=("lr", "nunique"), size=("lr", "size")
    )
    sizes = sizes[(sizes["alphas"] >= FEWEST_ALPHAS) & (sizes["rates"] >= FEWEST_ALPHAS)]
    if sizes.empty:
        raise Absent("a plane needs runs at three alphas and three learning rates")
    found = found[found["setting"] == sizes["size"].idxmax()]
    alphas = found.groupby("rank")["alpha"].transform("nunique")
    found = found[alphas >= FEWEST_ALPHAS]
    if found.empty:
        raise Absent("a plane needs runs of one rank at three alphas")
    return found


def _cells(tables: Tables, found: pd.DataFrame) -> pd.DataFrame:
    return tables.cells[tables.cells["cell_id"].astype(str).isin(set(found["cell_id"]))]


def _above_lowest(found: pd.DataFrame, lowest: pd.DataFrame) -> pd.DataFrame:
    """By alpha and rate, how far the loss lies ``above`` the lowest vertex of its seed: a mean over
    seeds. A pair at which a seed diverged has the highest level."""
    base = lowest.groupby("seed")["loss"].min()
    gaps = found.assign(above=found["loss"] - found["seed"].map(base))
    gaps["above"] = gaps["above"].where(found["loss"].notna(), 2 * LEVELS[-1])
    mean = gaps.dropna(subset="above").groupby(["alpha", "lr"], as_index=False)["above"].mean()
    return mean.assign(above=mean["above"].clip(lower=0.0))


def _triangles(above: pd.DataFrame) -> Triangulation | None:
    """Triangles between neighbouring runs, in alpha and rate; None if there are none."""
    if len(above) < 3 or above["alpha"].nunique() < 2 or above["lr"].nunique() < 2:
        return None
    x, y = np.log(above["alpha"].to_numpy(float)), np.log(above["lr"].to_numpy(float))
    corners = Triangulation(x, y + x / 2).triangles  # the valley falls about as 1 / sqrt(alpha)
    spans = np.maximum(np.ptp(x[corners], axis=1), np.ptp((y + x / 2)[corners], axis=1))
    is_long = spans > math.log(LONGEST)
    if is_long.all():
        return None
    return Triangulation(above["alpha"], above["lr"], corners[~is_long])


def _contours(ax: Axes, above: pd.DataFrame) -> ContourSet | None:
    """Filled contours of a rank; None if it has too few runs."""
    grid = _triangles(above)
    if grid is None:
        return None
    norm = BoundaryNorm([*LEVELS, 2 * LEVELS[-1]], COLOURS.N)
    options: dict[str, Any] = {"levels": LEVELS, "extend": "max", "cmap": COLOURS, "norm": norm}
    hatches = [None] * (len(LEVELS) - 1) + ["//////"]
    return ax.tricontourf(grid, above["above"], hatches=hatches, **options)


def _ways(ax: Axes, rank: float) -> None:
    """Vertical lines at the alphas that users set at a rank."""
    ways: dict[str, tuple[float, Any]] = {
        "LoRA": (16.0, "solid"),
        "rsLoRA": (16 * math.sqrt(rank), "dashed"),
        "twice the rank": (2 * rank, "dotted"),
        "LoRA+": (256.0, "dashdot"),
    }
    for name, (alpha, dashes) in ways.items():
        ax.axvline(alpha, color="#c2185b", linestyle=dashes, linewidth=0.8, gid=name)


def _star(ax: Axes, pair: Any, colour: Any = "#d9730d") -> None:
    """The best pair, with the intervals of alpha and rate from three seeds on."""
    look: dict[str, Any] = {"color": colour, "linewidth": 1.0, "zorder": 5}
    if pair["seeds"] >= FEWEST_SEEDS:
        ax.hlines(pair["lr"], pair["alpha_low"], pair["alpha_high"], **look)
        ax.vlines(pair["alpha"], pair["lr_low"], pair["lr_high"], **look)
    star: dict[str, Any] = {
        "marker": "*",
        "markersize": 8,
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    }
    at = [pair["alpha"]], [pair["lr"]]
    ax.plot(*at, color=colour, zorder=6, linestyle="none", gid="best pair", **star)
