"""From timings to costs: medians, ratios to the base with intervals, and a verdict."""

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

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
    - ``weights_gb``, ``peak_gb``: memory in GiB. ``peak_ratio``: the peak over the base's.

    The form ``all merged`` pools the merged adapters of a round. All have the base's shape, so
    together they show a difference that is too small to see in one of them.
    """
    own = timings["form"] == "base"
    base = timings[own].groupby(["phase", "round"])["seconds"].mean().rename("base")
    others = timings.join(base, on=["phase", "round"])
    others["ratio"] = others["seconds"] / others["base"]
    together = others[others["form"] == "merged"].assign(form="all merged", scaling="", rank=0)
    others = pd.concat([others, together])
    peak = timings[own].groupby("phase")["peak_gb"].first().to_dict()
    rows = []
    for key, turns in others.groupby(list(KEYS), sort=False):
        by_round = turns.groupby("round")["ratio"].mean().to_numpy()
        low, high = _interval(by_round)
        rows.append(
            dict(zip(KEYS, key, strict=True))
            | {"tokens": turns["tokens"].iloc[0], "seconds": turns["seconds"].median()}
            | {"ratio": float(np.median(by_round)), "ratio_low": low, "ratio_high": high}
            | {"same": low >= 1 - SAME and high <= 1 + SAME, "rounds": len(by_round)}
            | {name: turns[name].iloc[0] for name in ("weights_gb", "peak_gb")}
            | {"peak_ratio": turns["peak_gb"].iloc[0] / peak[key[0]]}
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
        together = rows[rows["form"] == "all merged"].iloc[0].to_dict()
        same = "the same" if together["same"] else "not shown to be the same"
        said.append(
            f"{phase}: merged {_ratio(together)} of the base, {same} within {SAME:.0%}; "
            f"each {merged['ratio'].min():.3f} to {merged['ratio'].max():.3f}, "
            f"{merged['same'].sum()} of {len(merged)} shown to be the same on their own; "
            f"unmerged {unmerged['ratio'].min():.2f} to {unmerged['ratio'].max():.2f}"
        )
    return "\n".join(said)


def _ratio(row: dict[Hashable, Any]) -> str:
    """``1.003 [0.985, 1.012]``; without the interval if there are too few rounds for one."""
    said = f"{row['ratio']:.3f}"
    few = row["rounds"] < ROUNDS_FOR_INTERVAL
    return said if few else f"{said} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]"


def render_inference(costs: pd.DataFrame) -> Table:
    """The costs as a table for a terminal."""
    table = Table(box=None, pad_edge=False)
    for name in ("phase", "form", "rule", "rank"):
        table.add_column(name, no_wrap=True)
    for name in ("ms", "over the base", "GiB", "peak GiB"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in costs.to_dict("records"):
        named = [str(row[name] or "") for name in KEYS]
        memory = [f"{row[name]:.3f}" for name in ("weights_gb", "peak_gb")]
        ratio = "" if row["form"] == "base" else _ratio(row)
        table.add_row(*named, f"{1e3 * row['seconds']:.1f}", ratio, *memory)
    return table
