"""The held-out loss of trained adapters cut to lower ranks: how much rank does a run need?"""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.figures import style
from study.figures.final_loss import METRIC
from study.figures.selection import Absent, Family, Rule, Tables, holding

MOST_RULES = 5


@style.paper()
def truncated_losses(tables: Tables) -> Figure:
    """Held-out loss after training, with every weight change cut to its k largest singular
    directions, one line per trained rank.

    A line ends with a large marker at the whole run, where k is its rank. The loss of the base
    (k = 0) is much higher: it is in the text below the panels. Lines are means over seeds.
    """
    absent = "no truncations in the tables: train with probes.truncations=log"
    rows = getattr(tables, "truncations", pd.DataFrame())
    if len(rows) == 0:
        raise Absent(absent)
    rows = rows.astype({"cell_id": str})
    cells = tables.cells[tables.cells["status"] == "complete"].astype({"cell_id": str})
    cells = cells[cells["cell_id"].isin(set(rows["cell_id"]))].reset_index(drop=True)

    def of_family(family: Family) -> pd.DataFrame:
        return family.cells[["cell_id", "rule", "rank", "seed"]].merge(rows, on="cell_id")

    shown, left_out = holding(cells, of_family, absent, rules=MOST_RULES)
    columns = min(max(len(family.rules) for family in shown), MOST_RULES)
    page, grid = style.panels(list(shown), columns, ratio=0.33 * max(columns, 2), sharex=True)
    for row, (family, cut) in zip(grid, shown.items(), strict=True):
        kept = sorted({k for k in cut["kept"] if 0 < k < math.inf})
        for ax, rule in style.each(row, family.rules):
            style.rank_axis(ax, kept, page.get_figwidth() / columns - 0.6)
            ax.set_xlabel("rank $k$ of the cut $\\Delta W$")
            _draw(ax, family, rule, cut[cut["rule"] == rule])
            style.heading(ax, rule, columns)
            ax.margins(y=0.15)  # room for labels above the markers, and right of the last one
        row[0].set_xlim(right=2.5 * max(ax.dataLim.x1 for ax in row))
        style.y_axis(row, METRIC.label, f"({METRIC.unit})")
    seeds = max(family.cells["seed"].nunique() for family in shown)
    base = sorted({f"{loss:.2f}" for loss in rows.loc[rows["kept"] == 0, "loss"]})
    return style.finish(
        page,
        f"Lines: mean over {seeds} seeds." if seeds > 1 else "",
        style.on_ranks(family.ranks for family in shown),
        "Large: the whole run.",
        f"Base ($k = 0$): {' to '.join(dict.fromkeys([base[0], base[-1]]))}." if base else "",
        left_out,
    )


def _draw(ax: Axes, family: Family, rule: Rule, rows: pd.DataFrame) -> None:
    """The lines of one rule, each labelled at its end.

    gids: ``cut|whole <scaling> p=<p> r=<rank>``; ``rank <rank>``.
    """
    most = max((k for k in rows["kept"] if math.isfinite(k)), default=1.0)
    for rank in style.ranks_to_draw(family.ranks):
        loss = rows[(rows["rank"] == rank) & (rows["kept"] > 0)].groupby("kept")["loss"].mean()
        if loss.empty:
            continue
        colour, name = style.shade(rule, rank, family.ranks), style.rank_name(rank)
        who = f"{style.gid(rule)} r={name}"
        kept = [min(k, 2 * most) for k in loss.index]  # infinite rank: right of all others
        ax.plot(kept, loss, color=colour, gid=f"cut {who}", zorder=2, **style.DOTS)
        look = style.LARGE | {"marker": style.rule_look(rule.scaling).marker, "color": colour}
        ax.plot(kept[-1:], loss.iloc[-1:], gid=f"whole {who}", **look)
        look = {"color": colour, "fontsize": 7, "gid": f"rank {name}"}
        end = kept[-1], loss.iloc[-1]
        ax.annotate(name, end, (3, 3), textcoords="offset points", **look)
