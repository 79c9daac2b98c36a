"""The table and the figure of the inference benchmark: medians, ratios to the base, a verdict."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.figures import style
from study.figures.selection import Absent, DrawnRule
from study.vocabulary.sources import model_label
from study.vocabulary.thresholds import CONFIDENCE

SAME = 0.03
"""A cost is the same as the base's if its ratio differs from 1 by at most this."""
RESAMPLES = 4000
ROUNDS_FOR_INTERVAL = 3
KEYS = ("phase", "form", "scaling", "rank")
PHASES, FORMS = ("prefill", "decode"), ("base", "control", "all merged", "merged", "unmerged")


def inference_costs(timings: pd.DataFrame) -> pd.DataFrame:
    """One row per phase, form, rule and rank, from the rows of ``study bench inference``.

    - ``seconds``: median over turns;
    - ``ratio``: median over rounds of the form's time over the base's mean time in that round, so
      that a slower moment of the machine cancels;
    - ``ratio_low``, ``ratio_high``: its 95 % interval, by resampling rounds; NaN with fewer than
      three;
    - ``same``: whether that interval is within 1 ± 0.03;
    - ``weights_gb``: memory in GiB. ``weights_ratio``: the same over the base's.

    The form ``all merged`` pools the merged adapters of a round. All have the base's shape, so
    together they show a difference that is too small to see in one of them.
    """
    own = timings["form"] == "base"
    base = timings[own].groupby(["phase", "round"])["seconds"].mean().rename("base")
    others = timings.join(base, on=["phase", "round"])
    others["ratio"] = others["seconds"] / others["base"]
    together = others[others["form"] == "merged"].assign(form="all merged", scaling="", rank=0)
    others = pd.concat([others, together])
    weights = timings.loc[own, "weights_gb"].iloc[0]
    rows = []
    for key, turns in others.groupby(list(KEYS), sort=False):
        by_round = turns.groupby("round")["ratio"].mean().to_numpy()
        low, high = _interval(by_round)
        rows.append(
            dict(zip(KEYS, key, strict=True))
            | {"tokens": turns["tokens"].iloc[0], "seconds": turns["seconds"].median()}
            | {"ratio": float(np.median(by_round)), "ratio_low": low, "ratio_high": high}
            | {"same": low >= 1 - SAME and high <= 1 + SAME, "rounds": len(by_round)}
            | {"weights_gb": (own_gb := turns["weights_gb"].iloc[0])}
            | {"weights_ratio": own_gb / weights}
        )
    found = pd.DataFrame(rows)
    ordered = {
        name: pd.Categorical(found[name], order)
        for name, order in (("phase", PHASES), ("form", FORMS))
    }
    found = found.assign(**ordered).sort_values(list(KEYS), ignore_index=True)
    return found.astype(dict.fromkeys(ordered, str))


def _interval(values: np.ndarray) -> tuple[float, float]:
    """The percentile bootstrap interval of the median."""
    if len(values) < ROUNDS_FOR_INTERVAL:
        return np.nan, np.nan
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def inference_verdict(costs: pd.DataFrame) -> str:
    """Whether merged adapters cost what the base costs, and what unmerged ones cost: a line per
    phase."""
    said = []
    for phase, rows in costs.groupby("phase", sort=False):
        merged, unmerged = (rows[rows["form"] == form] for form in ("merged", "unmerged"))
        [together] = rows[rows["form"] == "all merged"].to_dict("records")
        same = "the same" if together["same"] else "not shown to be the same"
        said.append(
            f"{phase}: merged {_ratio(together)} of the base, {same} within {SAME:.0%}; "
            f"each {merged['ratio'].min():.3f} to {merged['ratio'].max():.3f}, "
            f"{merged['same'].sum()} of {len(merged)} shown to be the same on their own; "
            f"unmerged {unmerged['ratio'].min():.2f} to {unmerged['ratio'].max():.2f}"
        )
    return "\n".join(said)


def _ratio(row: Mapping[Hashable, Any]) -> str:
    """``1.003 [0.985, 1.012]``; without the interval if there are too few rounds for one."""
    said = f"{row['ratio']:.3f}"
    few = np.isnan(row["ratio_low"])
    return said if few else f"{said} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]"


PANELS = (
    ("prefill", "ratio", "time"),
    ("decode", "ratio", "time"),
    ("prefill", "weights_ratio", "weights"),
)
"""By panel: the phase, the column of the costs that it shows, and what that is."""
HOLLOW = {"markerfacecolor": "white", "markeredgewidth": 0.8, "linestyle": (0, (3, 1.5))}
"""The look of unmerged adapters."""


@style.paper()
def infer_cost(timings: pd.DataFrame) -> Figure:
    """Time and weights in memory relative to the base: merged (filled), unmerged (hollow), by rule.

    ``timings`` is the table that ``study bench inference`` writes. In the grey band, 1 ± 0.03, an
    adapter costs the same as the base. Raises :class:`Absent` for a table without adapters.
    """
    costs = inference_costs(timings)
    adapted = costs[costs["rank"] > 0]
    if adapted.empty:
        raise Absent("no adapter in the timings")
    rules = [
        DrawnRule.of(name, None) for name in ("lora", "rslora") if name in set(adapted["scaling"])
    ]
    looks = {
        (form, rule): {
            **style.look(rule, rules),
            "markersize": 3.6,
            **(HOLLOW if form == "unmerged" else {}),
        }
        for form in ("merged", "unmerged")
        for rule in rules
    }
    page = style.figure(1, len(PANELS), ratio=0.85, above=0.62)
    panels = page.subplots(1, len(PANELS), squeeze=False)[0]
    tokens = dict(zip(costs["phase"], costs["tokens"], strict=True))
    for ax, (phase, column, what) in zip(panels, PANELS, strict=True):
        rows = adapted[adapted["phase"] == phase].sort_values("rank")
        _draw(ax, rows, column, looks)
        style.rank_axis(ax, sorted(set(rows["rank"])), page.get_figwidth() / len(PANELS) - 0.6)
        style.log_axis([ax])
        ax.set_title(f"{phase}, {tokens[phase]} token{'s' * (tokens[phase] > 1)}", loc="left")
        ax.set_ylabel(f"{what} / that of the base")
    handles = [panels[0].plot([], [], **look)[0] for look in looks.values()]
    names = [f"{style.name(rule)}, {form}" for form, rule in looks]
    page.legend(handles, names, loc="outside upper left", ncols=len(handles))
    first, rounds = timings.iloc[0], int(costs["rounds"].max())
    page.set_label(
        f"{model_label(first['model'])}, {first['precision']}, {first['device_name']}, "
        f"{first['threads']} threads, {rounds} rounds of all forms in random order"
    )
    hidden = f"Where rules agree, {style.name(rules[-1])} hides the other." if rules[1:] else ""
    return style.finish(page, hidden, *_fine_print(costs))


def _draw(ax: Axes, rows: pd.DataFrame, column: str, looks: Mapping[Any, Any]) -> None:
    ax.axhspan(1 - SAME, 1 + SAME, color=style.FAINT, alpha=0.18, linewidth=0, zorder=0, gid="same")
    ax.axhline(1, color=style.FAINT, linewidth=0.6, zorder=1)
    for (form, rule), look in sorted(looks.items(), key=lambda pair: pair[0][0], reverse=True):
        mine = rows[(rows["form"] == form) & (rows["scaling"] == rule.scaling)]
        who = f"{form} {style.gid(rule)}"
        ax.plot(mine["rank"], mine[column], **look, zorder=3, gid=who)
        if column == "ratio":
            bars: dict[str, Any] = {"linewidth": 0.8, "zorder": 2, "gid": f"bars {who}"}
            ends = (mine["ratio_low"], mine["ratio_high"])
            ax.vlines(mine["rank"], *ends, color=look["color"], **bars)
    bounds = ["ratio_low", "ratio_high"] if column == "ratio" else []
    shown = rows[[column, *bounds]].to_numpy()
    low, top = float(np.nanmin(shown)), float(np.nanmax(shown))
    ax.set_ylim(min(0.93, 0.98 * low), max(1.1, 1.06 * top))


def _fine_print(costs: pd.DataFrame) -> list[str]:
    said = [
        "Points: median over rounds of the time relative to the base in that round; bars: 95% "
        "intervals, by resampling rounds. Grey: within 3% of the base.",
    ]
    for form, name in (
        ("all merged", "All merged adapters together"),
        ("control", "The base once more, as a control"),
    ):
        rows = costs[(costs["form"] == form) & costs["ratio_low"].notna()].to_dict("records")
        if rows:
            told = [f"{row['phase']} {_ratio(row)}" for row in rows]
            said.append(f"{name}: {', '.join(told)}.")
    return said
