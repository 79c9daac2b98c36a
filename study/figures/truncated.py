"""The held-out loss of trained adapters cut to lower ranks: how much rank does a run need?"""

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from study.figures import style
from study.figures.selection import (
    Absent,
    Family,
    Rule,
    Tables,
    families,
    most_varied,
    rules_left_out,
)
from study.vocabulary.quantities import METRICS

MOST_SETTINGS, MOST_RULES = 3, 5


@style.paper()
def truncated_losses(tables: Tables) -> Figure:
    """Held-out loss after training, with every weight change cut to its k largest singular
    directions, one line per trained rank.

    A line ends with a large marker at the whole run, where k is its rank. The loss of the base
    (k = 0) is much higher: it is in the text below the panels. Lines are means over seeds.
    """
    rows = getattr(tables, "truncations", pd.DataFrame())
    if len(rows) == 0:
        raise Absent("no truncations in the tables: train with probes.truncations=log")
    cells = tables.cells.assign(cell_id=tables.cells["cell_id"].astype(str))
    cells = cells[cells["status"] == "complete"]
    rows = rows.assign(cell_id=rows["cell_id"].astype(str))
    every = families(cells[cells["cell_id"].isin(set(rows["cell_id"]))].reset_index(drop=True))
    shown, left_out = most_varied(every, MOST_SETTINGS)
    columns = min(max(len(family.rules) for family in shown), MOST_RULES)
    page = style.page_of_rules(len(shown), columns, 0.66, len(shown))
    grid = style.in_rows(page, [family.label for family in shown], columns, sharex=True)
    for row, family in zip(grid, shown, strict=True):
        rules = family.rules[:columns]
        panels = style.first(row, len(rules))
        joined = family.cells[["cell_id", "rule", "rank", "seed"]].merge(rows, on="cell_id")
        for ax, rule in zip(panels, rules, strict=True):
            _draw(ax, family, rule, joined[joined["rule"] == rule])
            style.heading(ax, rule, columns)
        _kept_axis(panels, sorted({k for k in joined["kept"] if 0 < k < math.inf}))
        style.y_label(panels[0], METRICS["eval_loss"].label, f"({METRICS['eval_loss'].unit})")
        style.linear_axis(panels[0])
    seeds = max(family.cells["seed"].nunique() for family in shown)
    base = sorted({f"{loss:.2f}" for loss in rows.loc[rows["kept"] == 0, "loss"]})
    return style.finish(
        page,
        f"Lines: mean over {seeds} seeds." if seeds > 1 else "",
        style.on_ranks(
            *max((len(style.ranks_to_draw(one.ranks)), len(one.ranks)) for one in shown)
        ),
        "Large: the whole run.",
        f"Base ($k = 0$): {' to '.join(dict.fromkeys([base[0], base[-1]]))}." if base else "",
        left_out,
        rules_left_out(shown, MOST_RULES),
        shown=shown,
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
        colour = style.shade(rule, rank, family.ranks)
        who = f"{style.gid(rule)} r={style.rank_name(rank)}"
        kept = [min(k, 2 * most) for k in loss.index]  # infinite rank: right of all others
        ax.plot(kept, loss, color=colour, gid=f"cut {who}", zorder=2, **style.DOTS)
        marker = style.rule_look(rule.scaling).marker
        look = style.LARGE | style.keywords(marker=marker, color=colour)
        ax.plot(kept[-1:], loss.iloc[-1:], gid=f"whole {who}", **look)
        name, at = style.rank_name(rank), (kept[-1], loss.iloc[-1])
        look = style.keywords(color=colour, fontsize=7, gid=f"rank {name}")
        ax.annotate(name, at, (3, 3), textcoords="offset points", **look)


def _kept_axis(panels: Any, kept: list[float]) -> None:
    """A logarithmic axis with at most about six labels."""
    labelled = kept[:: 1 + (len(kept) - 1) // 6]
    # Room for the labels: above the markers, and right of the last one.
    right = 2 * panels[0].get_xlim()[1]
    for ax in panels:
        ax.margins(y=0.15)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(FixedLocator(labelled))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda k, _: style.rank_name(k)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlim(right=right)
        ax.set_xlabel("rank $k$ of the cut $\\Delta W$")
