"""alpha beside the learning rate: where their product alone decides, and where not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.figures import style
from study.figures.basins import rate_axis, y_range
from study.figures.final_loss import LABEL, Sweep, sweeps
from study.figures.selection import Absent, Rule, Tables, most_varied, per_layer
from study.vocabulary.optimizers import of_family
from study.vocabulary.scaling import rule_label

MOST_ROWS, MOST_RANKS, MOST_RATES = 3, 4, 6


@dataclass(frozen=True)
class Part:
    """The runs of one rule of a setting, whose alphas and learning rates differ."""

    sweep: Sweep
    rule: Rule

    @property
    def cells(self) -> pd.DataFrame:
        return self.sweep.of(self.rule)

    @property
    def label(self) -> str:
        rule = rule_label(self.rule.scaling, self.rule.p)
        return ", ".join(filter(None, (self.sweep.family.label, rule)))

    @property
    def ranks(self) -> list[float]:
        """Those drawn."""
        return style.ranks_to_draw(self.sweep.family.finite_ranks, MOST_RANKS)

    @property
    def family(self) -> object:
        return self.sweep.family


@style.paper()
def loss_against_alpha(tables: Tables) -> Figure:
    """Final held-out loss against the product of alpha and the learning rate under a sign-like
    optimizer, a line per learning rate and a panel per rank. Where lines coincide, only the product
    matters; elsewhere the motion of A beside its init, rho, makes the difference.

    Lines are means over seeds. A large marker is the lowest mean of its learning rate. LoRA-alpha
    (arXiv 2606.12883, second hand) says that the larger alpha is better.
    """
    parts = [
        Part(sweep, rule)
        for sweep in sweeps(tables, free=("lr", "alpha"))
        for rule in sweep.family.rules
    ]
    parts = [part for part in parts if _has_both(part)]
    if not parts:
        raise Absent("a loss against alpha x lr needs runs at two alphas of two learning rates")
    shown, left_out = most_varied(parts, MOST_ROWS, lambda part: part.family)
    columns = max(len(part.ranks) for part in shown)
    options = style.keywords(above=0.3 + 0.35 * len(shown), column=style.FULL, sharex=True)
    labels = [part.label for part in shown]
    page, grid = style.panels(labels, columns, ratio=1.9 / max(columns, 2), **options)
    crosses = False
    for panels, part in zip(grid, shown, strict=True):
        low, high = y_range(part.sweep)
        for ax, rank in zip(style.first(panels, len(part.ranks)), part.ranks, strict=True):
            crosses = _draw(ax, part, rank, high) or crosses
            ax.set_title(f"rank {style.rank_name(rank)}")
            ax.set_xlabel("α × learning rate")
        rate_axis(panels[0], sorted(set(part.cells["alpha"] * part.cells["lr"])))
        style.y_label(panels[0], *LABEL)
        panels[0].set_ylim(low, high)
        style.linear_axis(panels[0])
    seeds = max(part.cells["seed"].nunique() for part in shown)
    return style.finish(
        page,
        "Numbers at the lines: learning rates.",
        f"Lines: mean over {seeds} seeds; bands: their range." if seeds > 1 else "",
        "Large: the best α of each learning rate.",
        _on_rho(tables, shown[0]),
        "×: diverged, or loss above the panel." if crosses else "",
        left_out,
        shown=[part.sweep.family for part in shown],
    )


def _has_both(part: Part) -> bool:
    """Whether two learning rates were run at two alphas each, under a sign-like optimizer."""
    is_sign = str(part.sweep.family.keys.get("optimizer")) in of_family("sign")
    alphas = part.cells.groupby("lr")["alpha"].nunique()
    return is_sign and bool((alphas > 1).sum() > 1)


def _draw(ax: Axes, part: Part, rank: float, top: float) -> bool:
    """The lines of one rank. Return whether any is a cross: diverged, or above ``top``.

    gids: ``line|band|best|cross lr=<lr> r=<rank>``.
    """
    cells = part.cells[part.cells["rank"] == rank]
    rates = style.ranks_to_draw(sorted(set(cells["lr"])), MOST_RATES)
    crosses = False
    for lr in rates:
        by = cells[cells["lr"] == lr].groupby("alpha")["loss"]
        whole = by.apply(lambda loss: bool(np.isfinite(loss).all()))
        mean, low, high = by.mean()[whole], by.min()[whole], by.max()[whole]
        colour, who = style.shade(part.rule, lr, rates), f"lr={lr:g} r={style.rank_name(rank)}"
        product = mean.index.to_numpy(float) * lr
        ax.plot(product, mean, color=colour, gid=f"line {who}", **style.DOTS)
        style.band(ax, product, low, high, colour, f"band {who}", alpha=0.12)
        if len(mean):
            best = int(mean.to_numpy().argmin())
            large = style.keywords(marker="o", markersize=5, zorder=4, color=colour)
            ax.plot(product[best], mean.iloc[best], gid=f"best {who}", **large)
            y = min(float(mean.iloc[-1]), top)
            style.label_end(ax, float(product[-1]), y, style.decimal(lr, powers=True), colour)
        lost = _lost(whole, by.mean(), top) * lr
        if len(lost):
            crosses = True
            style.crosses(ax, lost, colour, f"cross {who}")
    return crosses


def _lost(whole: "pd.Series[bool]", mean: "pd.Series[float]", top: float) -> np.ndarray:
    """The alphas at which a seed diverged, or the mean lies above the panel."""
    return whole.index[~whole | (mean > top)].to_numpy(float)


def _on_rho(tables: Tables, part: Part) -> str:
    """A sentence on rho at each learning rate; empty if it was not measured."""
    rho = per_layer(tables.cells, tables.probes, "A", "rho")
    rho = rho[rho["step"] == rho["step"].max()].assign(cell_id=rho["cell_id"].astype(str))
    of_cell = rho.groupby("cell_id")["value"].median()
    cells = part.cells.assign(rho=part.cells["cell_id"].map(of_cell)).dropna(subset=["rho"])
    if cells.empty:
        return ""
    rates: Sequence[float] = style.ranks_to_draw(sorted(set(cells["lr"])), MOST_RATES)
    middle = cells.groupby("lr")["rho"].median()
    each = ", ".join(f"{middle[lr]:.2g} at {style.decimal(lr, powers=True)}" for lr in rates)
    return f"Median ρ after the last step, on the training batch: {each}."
