"""The held-out loss of trained adapters that were cut to lower ranks: how much of its rank does a run need?"""

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

MOST_SETTINGS, MOST_RULES = 3, 5


@style.paper()
def truncated_losses(tables: Tables) -> Figure:
    """Held-out loss after training, every delta_w cut to its k largest singular directions; a line per trained rank.

    A line ends, marked, at the run itself: k is then its rank. The base, k = 0, is far above and said in words. Means
    over seeds.
    """
    rows = getattr(tables, "truncations", pd.DataFrame())
    if len(rows) == 0:
        raise Absent("no truncations in the tables: train with probes.truncations=log")
    losses = tables.cells.assign(cell_id=tables.cells["cell_id"].astype(str))
    losses = losses[losses["status"] == "complete"]
    rows = rows.assign(cell_id=rows["cell_id"].astype(str))
    found = families(losses[losses["cell_id"].isin(set(rows["cell_id"]))].reset_index(drop=True))
    shown, left_out = most_varied(found, MOST_SETTINGS)
    columns = min(max(len(family.rules) for family in shown), MOST_RULES)
    page = style.figure(
        len(shown),
        columns,
        column=style.FULL if columns > 1 else style.HALF,
        ratio=0.66 * max(columns, 2) / 2,
        above=0.3 + (0.35 * len(shown) if len(shown) > 1 else 0),
    )
    for part, family in zip(
        style.rows(page, [family.label for family in shown]), shown, strict=True
    ):
        panels = part.subplots(1, columns, sharex=True, sharey=True, squeeze=False)[0]
        rules = family.rules[:columns]
        joined = family.cells[["cell_id", "rule", "rank", "seed"]].merge(rows, on="cell_id")
        for ax, rule in zip(panels, rules, strict=False):
            _draw(ax, family, rule, joined[joined["rule"] == rule])
            ax.set_title(
                style.title(rule, lines=1 if columns < 4 else 2),
                color=style.tint(rule, [rule]),
                linespacing=1.0,
            )
        for ax in panels[len(rules) :]:
            ax.set_visible(False)
        _kept_axis(panels[: len(rules)], sorted({k for k in joined["kept"] if 0 < k < math.inf}))
        style.y_label(panels[0], "held-out loss", "(nats per token)")
        style.linear_axis(panels[0])
        has = {
            (rule, rank)
            for rule in rules
            for rank in set(joined.loc[joined["rule"] == rule, "rank"])
        }
        style.ladder(part, panels, rules, family.ranks, has)
    seeds = max(family.cells["seed"].nunique() for family in shown)
    base = sorted({f"{loss:.2f}" for loss in rows.loc[rows["kept"] == 0, "loss"]})
    return style.finish(
        page,
        f"Lines: mean over {seeds} seeds." if seeds > 1 else "",
        "Large: the run itself, nothing cut.",
        f"The base, nothing kept: {' to '.join(dict.fromkeys([base[0], base[-1]]))}."
        if base
        else "",
        left_out,
        rules_left_out(shown, MOST_RULES),
    )


def _draw(ax: Axes, family: Family, rule: Rule, rows: pd.DataFrame) -> None:
    """One rule's lines. gids: ``cut|whole <scaling> p=<p> r=<rank>``."""
    most = max((k for k in rows["kept"] if math.isfinite(k)), default=1.0)
    for rank in family.ranks:
        loss = rows[(rows["rank"] == rank) & (rows["kept"] > 0)].groupby("kept")["loss"].mean()
        if loss.empty:
            continue
        colour, who = (
            style.shade(rule, rank, family.ranks),
            f"{style.gid(rule)} r={style.rank_name(rank)}",
        )
        kept = [
            min(k, 2 * most) for k in loss.index
        ]  # infinite rank is drawn a step beyond the others
        ax.plot(kept, loss, color=colour, marker="o", markersize=1.8, gid=f"cut {who}", zorder=2)
        mark: dict[str, Any] = {"marker": style.LOOKS[rule.scaling].marker, "markersize": 5, "color": colour,
                                "markeredgecolor": style.INK, "markeredgewidth": 0.7, "zorder": 4}  # fmt: skip
        ax.plot(kept[-1:], loss.iloc[-1:], gid=f"whole {who}", **mark)


def _kept_axis(panels: Any, kept: list[float]) -> None:
    labelled = kept[:: 1 + (len(kept) - 1) // 6]
    for ax in panels:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(FixedLocator(labelled))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda k, _: style.rank_name(k)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel("rank $k$ kept of $\\Delta W$")
