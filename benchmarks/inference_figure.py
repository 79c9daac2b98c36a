"""What merged and unmerged adapters cost at inference, against the rank. Not of a study: of ``study infer-cost``."""

from typing import Any

import numpy as np
import pandas as pd
from inference_costs import SAME, inference_costs
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.figures import style
from study.figures.selection import Absent, Rule

PANELS = (("prefill", "ratio"), ("decode", "ratio"), ("prefill", "peak_ratio"))
"""What each panel shows: a phase, and a column of the costs."""


@style.paper()
def infer_cost(timings: pd.DataFrame) -> Figure:
    """Time and peak memory over the base's, merged (filled) and unmerged (hollow), a colour and marker per rule.

    ``timings`` is the table that ``study infer-cost`` writes. The grey band is 1 ± 0.03, within which a merged adapter
    is said to cost what the base does. Raises :class:`Absent` for a table without adapters.
    """
    costs = inference_costs(timings)
    adapted = costs[costs["rank"] > 0]
    if adapted.empty:
        raise Absent("no adapter in the timings")
    rules = [Rule.of(name, None) for name in ("lora", "rslora") if name in set(adapted["scaling"])]
    page = style.figure(1, len(PANELS), ratio=0.85, above=0.62)
    panels = page.subplots(1, len(PANELS), squeeze=False)[0]
    for ax, (phase, column) in zip(panels, PANELS, strict=True):
        _draw(
            ax,
            adapted[adapted["phase"] == phase],
            column,
            rules,
            inches=page.get_figwidth() / len(PANELS) - 0.6,
        )
        style.log_axis([ax])
    tokens = dict(zip(costs["phase"], costs["tokens"], strict=True))
    style.y_label(panels[0], "time over the base's", f"prefill, {tokens['prefill']} tokens")
    style.y_label(panels[1], "time over the base's", "decode, 1 token")
    style.y_label(panels[2], "peak memory over the base's", "prefill")
    handles = [
        _handle(panels[0], rule, rules, form) for form in ("merged", "unmerged") for rule in rules
    ]
    names = [f"{style.name(rule)}, {form}" for form in ("merged", "unmerged") for rule in rules]
    page.legend(handles, names, loc="outside upper center", ncols=len(handles))
    return style.finish(page, *_fine_print(timings, costs))


def _draw(ax: Axes, rows: pd.DataFrame, column: str, rules: list[Rule], inches: float) -> None:
    """One panel. gids: ``same``; ``<form>|bars <form> <rule>``."""
    ax.axhspan(1 - SAME, 1 + SAME, color=style.FAINT, alpha=0.18, linewidth=0, zorder=0, gid="same")
    ax.axhline(1, color=style.FAINT, linewidth=0.6, zorder=1)
    for form in ("unmerged", "merged"):
        for rule in rules:
            mine = rows[(rows["form"] == form) & (rows["scaling"] == rule.scaling)].sort_values(
                "rank"
            )
            look, who = _look(rule, rules, form), f"{form} {style.gid(rule)}"
            ax.plot(mine["rank"], mine[column], **look, zorder=3, gid=who)
            if column == "ratio":
                ax.vlines(mine["rank"], mine["ratio_low"], mine["ratio_high"], color=look["color"], alpha=0.5,
                          linewidth=1.6, zorder=2, gid=f"bars {who}")  # fmt: skip
    style.rank_axis(ax, sorted(set(rows["rank"])), inches)
    top = float(
        np.nanmax(
            rows[[column, "ratio_high"]].to_numpy()
            if column == "ratio"
            else rows[column].to_numpy()
        )
    )
    low = float(
        np.nanmin(
            rows[[column, "ratio_low"]].to_numpy() if column == "ratio" else rows[column].to_numpy()
        )
    )
    ax.set_ylim(min(0.93, 0.98 * low), max(1.1, 1.06 * top))


def _look(rule: Rule, rules: list[Rule], form: str) -> dict[str, Any]:
    colour = style.tint(rule, rules)
    hollow = {"markerfacecolor": "white", "markeredgewidth": 0.8, "linestyle": (0, (3, 1.5))}
    look: dict[str, Any] = {"color": colour, "marker": style.marker(rule, rules), "markersize": 3.6}
    return look | (hollow if form == "unmerged" else {})


def _handle(ax: Axes, rule: Rule, rules: list[Rule], form: str) -> Any:
    return ax.plot([], [], **_look(rule, rules, form))[0]


def _fine_print(timings: pd.DataFrame, costs: pd.DataFrame) -> list[str]:
    first, rounds = timings.iloc[0], int(costs["rounds"].max())
    said = [
        f"{first['model']}, {first['precision']}, {first['device_name']}, {first['threads']} threads; {rounds} rounds, "
        "every form in each, in an order drawn anew.",
        "Points: medians over rounds of the time over the base's in that round; bars: 95% intervals, by resampling "
        "rounds. Grey: within 3% of the base.",
    ]
    for form, name in (
        ("all merged", "All merged ones together"),
        ("control", "The base under another name"),
    ):
        told = [
            f"{row['phase']} {row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]"
            for _, row in costs[costs["form"] == form].iterrows()
            if np.isfinite(row["ratio_low"])
        ]
        if told:
            said.append(f"{name}: {', '.join(told)}.")
    return said
