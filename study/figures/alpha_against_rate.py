"""alpha beside the learning rate: where their product alone decides, and where not."""

import dataclasses
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.figures import style
from study.figures.final_loss import LABEL, Sweep, draw_line, sweeps
from study.figures.selection import Absent, Tables, most_varied, probed
from study.vocabulary.optimizers import of_family

MOST_RANKS = 4


@style.paper()
def loss_against_alpha(tables: Tables) -> Figure:
    """Final held-out loss against the product of alpha and the learning rate under a sign-like
    optimizer, a line per learning rate and a panel per rank. Where lines coincide, only the product
    matters; elsewhere the motion of A beside its init, rho, makes the difference.

    Lines are means over seeds. A large marker is the lowest mean of its learning rate. LoRA-alpha
    (arXiv 2606.12883, abstract) says that the larger alpha is better.
    """
    parts = []
    for sweep in sweeps(tables, "lr", "alpha"):
        is_sign = str(sweep.keys.get("optimizer")) in of_family("sign")
        for rule in sweep.rules:
            cells = sweep.of(rule)
            label = ", ".join(filter(None, (sweep.label, style.name(rule))))
            # Two learning rates at two alphas each.
            if is_sign and (cells.groupby("lr")["alpha"].nunique() > 1).sum() > 1:
                parts.append(dataclasses.replace(sweep, label=label, cells=cells))
    if not parts:
        raise Absent("a loss against alpha x lr needs runs at two alphas of two learning rates")
    shown, left_out = most_varied(parts)
    ranks = [style.ranks_to_draw(part.finite_ranks, MOST_RANKS) for part in shown]
    columns = max(map(len, ranks))
    above, ratio = 0.3 + 0.35 * len(shown), 1.9 / max(columns, 2)
    page, grid = style.panels(
        shown, columns, ratio=ratio, above=above, column=style.FULL, sharex=True
    )
    crosses = False
    for panels, part, its_ranks in zip(grid, shown, ranks, strict=True):
        for ax, rank in style.each(panels, its_ranks):
            crosses = _draw(ax, part, rank) or crosses
            ax.set_title(f"rank {style.rank_name(rank)}")
            ax.set_xlabel("α × learning rate")
        products = part.cells["alpha"] * part.cells["lr"]
        panels[0].set_xscale("log")
        style.log_ticks(panels[0].xaxis, (products.min(), products.max()))
        panels[0].set_ylim(*part.y_range)
        style.y_axis(panels, *LABEL)
    seeds = max(part.cells["seed"].nunique() for part in shown)
    return style.finish(
        page,
        "Numbers at the lines: learning rates.",
        f"Lines: mean over {seeds} seeds; bands: their range." if seeds > 1 else "",
        "Large: the best α of each learning rate.",
        _on_rho(tables, shown[0]),
        "×: diverged, or loss above the panel." if crosses else "",
        left_out,
    )


def _draw(ax: Axes, part: Sweep, rank: float) -> bool:
    """The lines of one rank. Return whether any is a cross: diverged, or above the panel.

    gids: ``line|band|best|cross lr=<lr> r=<rank>``.
    """
    (rule,), (_, top) = part.rules, part.y_range
    cells = part.cells[part.cells["rank"] == rank]
    rates = style.ranks_to_draw(sorted(set(cells["lr"])))
    crosses = False
    for lr in rates:
        colour, who = style.shade(rule, lr, rates), f"lr={lr:g} r={style.rank_name(rank)}"
        own, name = cells[cells["lr"] == lr], style.decimal(lr, powers=True)
        mean, crossed = draw_line(ax, own, "alpha", top, name, who, factor=lr, color=colour)
        crosses = crosses or crossed
        if len(mean):
            look: dict[str, Any] = {"marker": "o", "markersize": 5, "zorder": 4, "color": colour}
            best = mean.nsmallest(1)
            ax.plot(best.index, best, gid=f"best {who}", **look)
    return crosses


def _on_rho(tables: Tables, part: Sweep) -> str:
    """A sentence on rho at each learning rate; empty if it was not measured."""
    rho = probed(tables, "A", "rho")
    of_cell = rho[rho["step"] == rho["step"].max()].groupby("cell_id")["value"].median()
    cells = part.cells.assign(rho=part.cells["cell_id"].map(of_cell)).dropna(subset=["rho"])
    if cells.empty:
        return ""
    middle = cells.groupby("lr")["rho"].median()
    rates = style.ranks_to_draw(sorted(middle.index))
    each = ", ".join(f"{middle[lr]:.2g} at {style.decimal(lr, powers=True)}" for lr in rates)
    return f"Median ρ after the last step, on the training batch: {each}."
