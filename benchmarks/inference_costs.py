"""The table and the figure of the inference benchmark: medians, ratios to the base, a verdict."""

from collections.abc import Hashable, Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from study.errors import count_noun
from study.figures import style
from study.figures.selection import DrawnRule
from study.vocabulary.sources import model_label
from study.vocabulary.thresholds import CONFIDENCE

SAME = 0.03
"""A cost is the same as the base's if its ratio differs from 1 by at most this."""
RESAMPLES = 4000
ROUNDS_FOR_INTERVAL = 3
KEYS = ("phase", "form", "scaling", "rank")
PHASES, FORMS = ("prefill", "decode"), ("base", "control", "all merged", "merged", "unmerged")
RULES = ("lora", "rslora")


def inference_costs(timings: pd.DataFrame) -> pd.DataFrame:
    """One row per phase, form, rule and rank, from the rows of ``study bench inference``.

    - ``seconds``: median over turns;
    - ``ratio``: median over rounds of the form's time over the base's mean time in that round, so
      that a slower moment of the machine cancels;
    - ``ratio_low``, ``ratio_high``: its 95 % interval, by resampling rounds; NaN with fewer than
      three;
    - ``same``: whether that interval is within 1 ± 0.03;
    - ``weights_gb``: memory in GiB.

    The form ``all merged`` pools the merged adapters of a round. All have the base's shape, so
    together they show a difference that is too small to see in one of them.
    """
    bases = timings[timings["form"] == "base"]
    base = bases.groupby(["phase", "round"])["seconds"].mean().rename("base")
    others = timings.join(base, on=["phase", "round"])
    others["ratio"] = others["seconds"] / others["base"]
    together = others[others["form"] == "merged"].assign(form="all merged", scaling="", rank=0)
    others = pd.concat([others, together])
    for name, order in (("phase", PHASES), ("form", FORMS)):
        others[name] = pd.Categorical(others[name], order)
    rows = []
    for key, turns in others.groupby(list(KEYS), observed=True):
        by_round = turns.groupby("round")["ratio"].mean().to_numpy()
        low, high = _interval(by_round)
        rows.append(
            dict(zip(KEYS, key, strict=True))
            | {"tokens": turns["tokens"].iloc[0], "seconds": turns["seconds"].median()}
            | {"ratio": float(np.median(by_round)), "ratio_low": low, "ratio_high": high}
            | {"same": low >= 1 - SAME and high <= 1 + SAME, "rounds": len(by_round)}
            | {"weights_gb": turns["weights_gb"].iloc[0]}
        )
    return pd.DataFrame(rows)


def _interval(values: np.ndarray) -> tuple[float, float]:
    """The percentile bootstrap interval of the median."""
    if len(values) < ROUNDS_FOR_INTERVAL:
        return np.nan, np.nan
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def inference_verdict(costs: pd.DataFrame) -> str:
    """Whether merged adapters cost what the base costs, and what unmerged ones cost, by phase."""
    said = []
    for phase, rows in costs.groupby("phase", sort=False):
        merged, unmerged = (rows[rows["form"] == form] for form in ("merged", "unmerged"))
        [together] = rows[rows["form"] == "all merged"].to_dict("records")
        same = "the same" if together["same"] else "not shown to be the same"
        said.append(
            f"- {phase}: merged {_ratio(together)} of the base, {same} within {SAME:.0%}; "
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


LOOKS: dict[str, dict[str, Any]] = {
    "merged": {},
    "unmerged": {"mfc": "white", "mew": 0.8, "ls": (0, (3, 1.5))},
}


@style.paper()
def infer_cost(timings: pd.DataFrame) -> Figure:
    """Time relative to the base: merged (filled), unmerged (hollow), by rule.

    ``timings`` is the table that ``study bench inference`` writes. In the grey band, 1 ± 0.03, an
    adapter costs the same as the base.
    """
    costs, rules = inference_costs(timings), [DrawnRule.of(name, None) for name in RULES]
    page = style.figure(1, len(PHASES), ratio=0.6, above=0.62)
    panels = page.subplots(1, len(PHASES))
    looks: dict[str, dict[str, Any]] = {}
    for ax, phase in zip(panels, PHASES, strict=True):
        rows = costs[(costs["phase"] == phase) & (costs["rank"] > 0)]
        ax.axhspan(1 - SAME, 1 + SAME, color=style.FAINT, alpha=0.18, lw=0, zorder=0)
        for (form, more), rule in product(LOOKS.items(), rules):
            own = rows[(rows["form"] == form) & (rows["scaling"] == rule.scaling)]
            look = style.look(rule, rules) | {"ms": 3.6} | more
            looks[f"{style.name(rule)}, {form}"] = look
            ax.plot(own["rank"], own["ratio"], **look, zorder=3)
            ax.vlines(own["rank"], own["ratio_low"], own["ratio_high"], look["color"], lw=0.8)
        shown = rows[["ratio", "ratio_low", "ratio_high"]].to_numpy()
        ax.set_ylim(min(0.93, 0.98 * np.nanmin(shown)), max(1.1, 1.06 * np.nanmax(shown)))
        style.rank_axis(ax, sorted(set(rows["rank"])), page.get_figwidth() / len(PHASES) - 0.6)
        style.log_axis([ax])
        ax.set_title(f"{phase}, {count_noun(rows['tokens'].iloc[0], 'token')}", loc="left")
        ax.set_ylabel("time / that of the base")
    style.legend(page, looks, loc="outside upper left")
    first, rounds = timings.iloc[0], int(costs["rounds"].max())
    page.set_label(
        f"{model_label(first['model'])}, {first['precision']}, {first['device_name']}, "
        f"{first['threads']} threads, {rounds} rounds of all forms in random order"
    )
    return style.finish(
        page,
        f"Where rules agree, {style.name(rules[-1])} hides the other. Points: median over rounds "
        "of the time relative to the base in that round; bars: 95% intervals, by resampling "
        "rounds. Grey: within 3% of the base.",
        _of_all(costs, "all merged", "All merged adapters together"),
        _of_all(costs, "control", "The base once more, as a control"),
    )


def _of_all(costs: pd.DataFrame, form: str, name: str) -> str:
    told = [
        f"{row['phase']} {_ratio(row)}" for row in costs[costs["form"] == form].to_dict("records")
    ]
    return f"{name}: {', '.join(told)}."
