"""The exponent of the best learning rate with rank against rho, beside the predicted crossover."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.analysis.rate_theory import rate_exponent
from study.analysis.rates import exponents_against_rho, rates_by_horizon
from study.figures import style
from study.figures.selection import Absent, Family, Rule, Tables, holding

MARGIN = 2.0
"""The factor by which the axis of rho extends beyond the data on either side."""


@style.paper()
def rate_exponent_vs_rho(tables: Tables) -> Figure:
    """The exponent of the best learning rate with rank, against rho, the motion of A beside its
    init at the best rate. Curves are the predicted crossover, from -(1 - p) to half of it.

    At low rho a curve has the bend of the ranks measured. At high rho its band reaches from half of
    that to half of none. Bars are the 95 % interval over seeds, and the range of rho over ranks and
    seeds. Open markers are shorter runs: the same cells, read at an earlier step.
    """
    absent = (
        "an exponent of the best learning rate against rho needs rho of A, and learning rates "
        "swept at two ranks under a sign-like optimizer"
    )
    cells = tables.cells
    if cells.empty or cells["lr"].nunique() < 2 or "rho" not in tables.probes:
        raise Absent(absent)
    cells = cells.drop(columns=["lr", "alpha"], errors="ignore")
    shown, left_out = holding(cells, lambda family: _points(family, tables), absent)
    page, grid = style.panels(list(shown), 1, ratio=0.8, above=0.25 * len(shown))
    for [ax], (family, points) in zip(grid, shown.items(), strict=True):
        _draw(ax, family, points)
    every = pd.concat(shown.values())
    seeds, last = every["seeds"].max(), every["horizon"].max()
    *most, longest = [f"{step:.0f}" for step in sorted(set(every["horizon"]) - {last})] or [""]
    early = f"{', '.join(most)} or {longest}" if most else longest
    return style.finish(
        page,
        f"Vertical bars: 95 % intervals over {seeds:.0f} seeds." if seeds > 1 else "",
        "Horizontal bars: the range of ρ, on the training batch, over ranks and seeds.",
        "Bands: predicted, from the bend of the ranks measured to no bend in the motion of A.",
        f"Open: after {early} steps instead of {last:.0f}." if early else "",
        left_out,
    )


def _points(family: Family, tables: Tables) -> pd.DataFrame:
    """The exponents of a setting with their rho and prediction, and the ``rule`` of each."""
    cells = tables.cells[tables.cells["cell_id"].isin(set(family.cells["cell_id"]))]
    points = exponents_against_rho(rates_by_horizon(cells, tables.metrics, tables.probes))
    if points.empty:
        return points
    points = points.dropna(subset=["exponent", "rho", "move_slope"])
    rules = [Rule.of(*rule) for rule in points[["scaling", "exponent_p"]].to_numpy()]
    return points.assign(rule=pd.Series(rules, points.index, dtype=object))


def _draw(ax: Axes, family: Family, points: pd.DataFrame) -> None:
    """One setting. A shorter run has a smaller open marker, without bars.

    gids: ``curve|band|point|early <scaling> p=<p>``.
    """
    low, high = points["rho_low"].min() / MARGIN, points["rho_high"].max() * MARGIN
    rho = np.geomspace(low, high, 200)
    last = points["horizon"].max()
    ax.plot(rho, 0 * rho, color=style.CONTEXT, linewidth=0.5, gid="zero")
    for rule in family.rules:
        own = points[points["rule"] == rule]
        if own.empty:
            continue
        look, gid = style.look(rule, family.rules), style.gid(rule)
        colour, m = look["color"], float(own["move_slope"].mean())
        bent, straight = (rate_exponent(m, of_A, rho) for of_A in (m, 1 - rule.p))
        style.band(ax, rho, bent, straight, colour, f"band {gid}", alpha=0.15)
        middle = (bent + straight) / 2
        ax.plot(rho, middle, color=colour, linestyle=style.DASHED, gid=f"curve {gid}")
        style.label_end(ax, float(rho[-1]), float(middle[-1]), f"$p={rule.p:g}$", colour)
        for row in own.sort_values("horizon").to_dict("records"):
            x, y, is_last = row["rho"], row["exponent"], row["horizon"] == last
            if is_last:
                ax.hlines(y, row["rho_low"], row["rho_high"], color=colour, linewidth=0.6)
                if np.isfinite(row["ci_low"]):
                    ax.vlines(x, row["ci_low"], row["ci_high"], color=colour, linewidth=1.0)
            size, face = (4, colour) if is_last else (3, "white")
            marker = {**look, "markersize": size, "markerfacecolor": face, "linestyle": "none"}
            ax.plot([x], [y], zorder=size, gid=f"{'point' if is_last else 'early'} {gid}", **marker)
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    style.log_ticks(ax.xaxis, (low, high))
    ax.set_xlabel(r"$\rho = |\Delta A\,x| / |A_0\,x|$ at the best learning rate")
    style.y_axis([ax], "exponent of the best", "learning rate with rank")
