"""The figure of the inference benchmark."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.figures import style
from study.figures.selection import Absent, Rule
from study.vocabulary.sources import model_label

from .costs import SAME, inference_costs

PANELS = (("prefill", "ratio"), ("decode", "ratio"), ("prefill", "peak_ratio"))
"""The phase and the column of the costs that each panel shows."""


@style.paper()
def infer_cost(timings: pd.DataFrame) -> Figure:
    """Time and peak memory relative to the base: merged (filled), unmerged (hollow), by rule.

    ``timings`` is the table that ``study bench inference`` writes. In the grey band, 1 ± 0.03, an
    adapter costs the same as the base. Raises :class:`Absent` for a table without adapters.
    """
    costs = inference_costs(timings)
    adapted = costs[costs["rank"] > 0]
    if adapted.empty:
        raise Absent("no adapter in the timings")
    rules = [Rule.of(name, None) for name in ("lora", "rslora") if name in set(adapted["scaling"])]
    page = style.figure(1, len(PANELS), ratio=0.85, above=0.62)
    panels = page.subplots(1, len(PANELS), squeeze=False)[0]
    for ax, (phase, column) in zip(panels, PANELS, strict=True):
        rows = adapted[adapted["phase"] == phase]
        _draw(ax, rows, column, rules, inches=page.get_figwidth() / len(PANELS) - 0.6)
        style.log_axis([ax])
    tokens = dict(zip(costs["phase"], costs["tokens"], strict=True))
    panels[0].set_title(f"prefill, {tokens['prefill']} tokens", loc="left")
    panels[1].set_title("decode, 1 token", loc="left")
    panels[2].set_title(f"prefill, {tokens['prefill']} tokens", loc="left")
    for ax, what in zip(panels, ("time", "time", "peak memory"), strict=True):
        ax.set_ylabel(f"{what} / that of the base")
    handles = [
        _handle(panels[0], rule, rules, form) for form in ("merged", "unmerged") for rule in rules
    ]
    names = [f"{style.name(rule)}, {form}" for form in ("merged", "unmerged") for rule in rules]
    page.legend(handles, names, loc="outside upper left", ncols=len(handles))
    page.set_label(_settings(timings, costs))
    hidden = f"Where rules agree, {style.name(rules[-1])} hides the other." if rules[1:] else ""
    return style.finish(page, hidden, *_fine_print(costs))


def _draw(ax: Axes, rows: pd.DataFrame, column: str, rules: list[Rule], inches: float) -> None:
    """One panel. gids: ``same``; ``<form>|bars <form> <rule>``."""
    ax.axhspan(1 - SAME, 1 + SAME, color=style.FAINT, alpha=0.18, linewidth=0, zorder=0, gid="same")
    ax.axhline(1, color=style.FAINT, linewidth=0.6, zorder=1)
    for form in ("unmerged", "merged"):
        for rule in rules:
            mine = rows[(rows["form"] == form) & (rows["scaling"] == rule.scaling)]
            mine = mine.sort_values("rank")
            look, who = _look(rule, rules, form), f"{form} {style.gid(rule)}"
            ax.plot(mine["rank"], mine[column], **look, zorder=3, gid=who)
            if column == "ratio":
                bars: dict[str, Any] = {"linewidth": 0.8, "zorder": 2, "gid": f"bars {who}"}
                ends = (mine["ratio_low"], mine["ratio_high"])
                ax.vlines(mine["rank"], *ends, color=look["color"], **bars)
    style.rank_axis(ax, sorted(set(rows["rank"])), inches)
    shown = rows[[column, *(("ratio_low", "ratio_high") if column == "ratio" else ())]].to_numpy()
    low, top = float(np.nanmin(shown)), float(np.nanmax(shown))
    ax.set_ylim(min(0.93, 0.98 * low), max(1.1, 1.06 * top))


def _look(rule: Rule, rules: list[Rule], form: str) -> dict[str, Any]:
    colour = style.tint(rule, rules)
    hollow = {"markerfacecolor": "white", "markeredgewidth": 0.8, "linestyle": (0, (3, 1.5))}
    look: dict[str, Any] = {"color": colour, "marker": style.marker(rule, rules), "markersize": 3.6}
    return look | (hollow if form == "unmerged" else {})


def _handle(ax: Axes, rule: Rule, rules: list[Rule], form: str) -> Any:
    return ax.plot([], [], **_look(rule, rules, form))[0]


def _settings(timings: pd.DataFrame, costs: pd.DataFrame) -> str:
    """What was timed and on what, as the last line of the figure."""
    first, rounds = timings.iloc[0], int(costs["rounds"].max())
    return (
        f"{model_label(first['model'])}, {first['precision']}, {first['device_name']}, "
        f"{first['threads']} threads, {rounds} rounds of all forms in random order"
    )


def _fine_print(costs: pd.DataFrame) -> list[str]:
    said = [
        "Points: median over rounds of the time relative to the base in that round; bars: 95% "
        "intervals, by resampling rounds. Grey: within 3% of the base.",
    ]
    for form, name in (
        ("all merged", "All merged adapters together"),
        ("control", "The base once more, as a control"),
    ):
        told = [
            f"{row['phase']} {row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]"
            for _, row in costs[costs["form"] == form].iterrows()
            if np.isfinite(row["ratio_low"])
        ]
        if told:
            said.append(f"{name}: {', '.join(told)}.")
    return said
