"""What adapters cost at inference, from timings taken in turns: medians, ratios to the base, and their intervals."""

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from study.vocabulary.thresholds import CONFIDENCE

SAME = 0.03
"""How far from 1 a ratio to the base may be and still be called the same."""
RESAMPLES = 4000
ROUNDS_FOR_INTERVAL = 3
KEYS = ("phase", "form", "scaling", "rank")
PHASES, FORMS = ("prefill", "decode"), ("base", "control", "all merged", "merged", "unmerged")


def inference_costs(timings: pd.DataFrame) -> pd.DataFrame:
    """One row per phase and form (rule and rank where it has them), in order, from the rows of ``study infer-cost``.

    ``seconds`` is the median over turns. ``ratio`` is the median over rounds of a form's time over the base's mean in
    that round, so that what slows the whole machine down for a while cancels; ``ratio_low`` and ``ratio_high`` are its
    95 % interval, by resampling rounds (NaN with fewer than three). ``same`` says that the interval lies within
    1 ± 0.03. ``all merged`` is every merged adapter of a round taken as one: they have the base's shape, all of them,
    and together they show a difference that is too small for any of them alone. ``weights_gb`` and ``peak_gb`` are
    memory, ``peak_ratio`` the peak over the base's.
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
    """The percentile interval of the median, by the bootstrap; the base's own is that of 1 with itself."""
    if len(values) < ROUNDS_FOR_INTERVAL:
        return np.nan, np.nan
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def inference_verdict(costs: pd.DataFrame) -> str:
    """A sentence: whether merged adapters cost what the base does, and what unmerged ones cost beside it."""
    said = []
    for phase, rows in costs.groupby("phase", sort=False):
        merged, unmerged = (rows[rows["form"] == form] for form in ("merged", "unmerged"))
        together = rows[rows["form"] == "all merged"].iloc[0].to_dict()
        same = "the same" if together["same"] else "not shown to be the same"
        said.append(
            f"{phase}: merged {_ratio(together)} of the base, {same} within {SAME:.0%}; "
            f"each {merged['ratio'].min():.3f} to {merged['ratio'].max():.3f}, "
            f"{merged['same'].sum()} of {len(merged)} shown to be the same alone; "
            f"unmerged {unmerged['ratio'].min():.2f} to {unmerged['ratio'].max():.2f}"
        )
    return "\n".join(said)


def _ratio(row: dict[Hashable, Any]) -> str:
    """``1.003 [0.985, 1.012]``; without an interval where rounds are too few for one."""
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
