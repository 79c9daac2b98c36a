"""The blocks of the benchmarks: speed of training, probes and inference; and of `make faults`."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd

from benchmarks.inference_costs import inference_costs
from benchmarks.summary import (
    LABELS,
    NOT_MEASURED,
    OURS,
    PLAIN,
    limits,
    markdown,
    medians,
    processor,
    ratios_to,
)
from docs.blocks import RESULTS, Block, NoTables, minus
from docs.blocks import table as read
from study.report.text import table

STEPS = ("first step", "step")
TABLES = ("sweep", "large-steps", "compiled", "probes")
"""The committed tables of `study bench`."""
LEAST_PEAK = 65
"""The goal for a plain step at a low rank, in percent of the peak."""
HIGH = 1024
"""Ranks from here have a bar of their own."""


def speed() -> str:
    """The README's table: whole sweeps, and seconds of a step, by way."""
    sweep, large = read("bench/sweep"), read("bench/large-steps")
    compiled = medians(read("bench/compiled"), "rank")
    wall, all_steps = _walls(sweep), _walls(large[large["variant"].isin(STEPS)])
    ratio = compiled["loop"] / compiled["compiled"]
    shown = [16, 1024]
    body = [
        [*_whole("1024 tokens a step: the whole sweep", wall), ran_on("sweep")],
        [*_by_rank("1024 tokens", sweep), ran_on("sweep")],
        [*_whole("4096 tokens a step: all steps (one rule)", all_steps), ran_on("large-steps")],
        [*_by_rank("4096 tokens", large), ran_on("large-steps")],
        [
            f"`pack.compile=true`, rank {' · '.join(map(str, shown))}, against the tuned loop",
            *("", " · ".join(f"{ratio[rank]:.2f}" for rank in shown) + "×", ""),
            ran_on("compiled"),
        ],
        ["GPU", *[NOT_MEASURED] * 3, ""],
    ]
    ways = [LABELS["trainer"], LABELS["loop"], "ours"]
    return table(["SmolLM2, float32", *ways, "two threads of"], body)


def ran_on(suite: str) -> str:
    """The processor that a suite ran on."""
    return processor(read(f"bench/{suite}"))


def _walls(rows: pd.DataFrame) -> "pd.Series[float]":
    """Seconds of all rows, by way."""
    return rows.groupby("way")["seconds"].sum()


def _whole(name: str, walls: "pd.Series[float]") -> list[str]:
    """Each way's time over ours, and our seconds."""
    over = [
        f"{walls[way] / walls[OURS]:.2f}×" if way in walls else "" for way in ("trainer", "loop")
    ]
    return [name, *over, f"{walls[OURS]:.0f} s"]


def _by_rank(name: str, rows: pd.DataFrame, ranks: Sequence[int] = (64, 1024, 2048)) -> list[str]:
    """``4.2 · 11.1 · 20.1 s`` in the column of each way."""
    steps = medians(rows, "rank")
    entries = [
        " · ".join(f"{steps[way][rank]:.1f}" for rank in ranks) + " s" if way in steps else ""
        for way in ("trainer", "loop", OURS)
    ]
    return [f"{name}: rank {' · '.join(map(str, ranks))}", *entries]


def sweep() -> str:
    """Seconds of a step by rank, and how close ours are to the limits."""
    rows = read("bench/sweep")
    steps = medians(rows, "rank")
    ways = ["alone", "loop", OURS, "trainer"]
    shown = steps[ways].rename(columns=LABELS)
    shown["tuned loop / ours"] = steps["loop"] / steps[OURS]
    shown["Trainer / ours"] = steps["trainer"] / steps[OURS]
    return markdown(shown.join(limits(rows[rows["way"] == OURS])), "rank")


def sweep_bars() -> str:
    """The goals of the rank sweep."""
    rows = read("bench/sweep")
    wall, steps = _walls(rows), medians(rows, "rank")
    both = medians(rows, "rank", "scaling")
    high = both[both.index.get_level_values("rank") >= HIGH].sum()
    ratios = steps["loop"] / steps[OURS]
    worst = ratios.index[int(ratios.argmin())]
    return _bars(
        [
            (
                "twelve cells, set-up included, against the tuned loop",
                wall["loop"],
                wall[OURS],
                1.5,
            ),
            ("the same, against the Trainer", wall["trainer"], wall[OURS], 1.7),
            (
                f"medians of ranks from {HIGH}, against the tuned loop",
                high["loop"],
                high[OURS],
                1.9,
            ),
            (
                f"the worst rank, {worst}, against the tuned loop",
                *(steps["loop"][worst], steps[OURS][worst], 0.97),
            ),
        ]
    )


def flops() -> str:
    """``1.81 times at rank 1024 and 2.19 times at rank 2048``: factored over merged."""
    rows = read("bench/sweep")
    rows = rows[(rows["way"] == OURS) & (rows["variant"] == "step")]
    by_rank = rows.groupby("rank")[["base_flops", "adapter_flops", "factored_flops"]].median()
    base = by_rank["base_flops"]
    ratio = (base + by_rank["factored_flops"]) / (base + by_rank["adapter_flops"])
    parts = [f"{ratio[rank]:.2f} times at rank {rank}" for rank in ratio.index if rank >= HIGH]
    return " and ".join(parts)


def large_steps() -> str:
    """Seconds of a step of 4096 tokens."""
    rows = read("bench/large-steps")
    steps = medians(rows, "rank")
    shown = steps[["loop", OURS]].rename(columns=LABELS)
    shown["ratio"] = steps["loop"] / steps[OURS]
    parts: Any = rows.groupby(["way", "rank"])["micro_batches"].max().unstack("way")
    shown["micro-batches, tuned loop"] = parts["loop"]
    return markdown(shown, "rank")


def large_bars() -> str:
    """The goals of large steps."""
    rows = read("bench/large-steps")
    all_steps = _walls(rows[rows["variant"].isin(STEPS)])
    steps = medians(rows, "rank")
    return _bars(
        [
            ("all steps", all_steps["loop"], all_steps[OURS], 1.9),
            ("rank 2048, medians", steps["loop"][2048], steps[OURS][2048], 3.4),
        ]
    )


def compiled() -> str:
    """Seconds of a step with and without torch.compile."""
    rows = read("bench/compiled")
    steps = medians(rows, "rank")
    shown = steps[["loop", OURS, "compiled"]].rename(columns=LABELS)
    shown["tuned loop / compiled"] = steps["loop"] / steps["compiled"]
    firsts = rows[(rows["variant"] == "first step") & (rows["way"] == "compiled")]
    shown["first step, compiled"] = firsts.groupby("rank")["seconds"].median()
    return markdown(shown, "rank")


def peak() -> str:
    """``52 to 57 % of the peak (bar 65 %: **missed**)``: plain steps at low ranks."""
    rows = read("bench/sweep")
    share = limits(rows[rows["way"] == OURS])["% of peak"]
    low = share[share.index <= 64]
    met = "met" if low.min() >= LEAST_PEAK else "**missed**"
    return f"{low.min():.0f} to {low.max():.0f} % of the peak (bar {LEAST_PEAK} %: {met})"


def products() -> str:
    """The goals for a step's time over that of its products alone."""
    rows = read("bench/sweep")
    over = limits(rows[rows["way"] == OURS])["step / its products"]
    bars = (
        ("ranks up to 64", over[over.index <= 64], 1.25),
        (f"ranks from {HIGH}", over[over.index >= HIGH], 1.15),
    )
    return table(["", "step / its products", "bar", ""], [_most(*bar) for bar in bars])


def _most(name: str, found: "pd.Series[float]", bar: float) -> list[str]:
    """A row: the range of some ratios, and whether all are within the bar."""
    if found.isna().any():
        return [name, NOT_MEASURED, f"{bar:g}", ""]
    met = "met" if found.max() <= bar else "**missed**"
    return [name, f"{found.min():.2f} to {found.max():.2f}", f"{bar:g}", met]


def probes() -> str:
    """The cost of probes."""
    rows = read("bench/probes")
    over = 100 * (ratios_to("off", rows[rows["way"] == OURS]) - 1)
    bars = {"activations, every step": 10.0, "all sites, every 10 steps": 3.0}
    body = []
    for variant, percent in over.items():
        bar = bars.get(str(variant))
        met = "" if bar is None else "met" if percent.median() <= bar else "**missed**"
        spread = f"{percent.median():+.1f} % ({percent.min():.1f} to {percent.max():.1f})"
        body.append([str(variant), spread, "" if bar is None else f"{bar:g} %", met])
    return minus(table(["probes", "", "bar", ""], body))


def probed_steps() -> str:
    """The time of a step that measures all sites over that of a plain one, at rank 1024."""
    rows = read("bench/probes").query("way == 'fold' and rank == 1024")
    body = []
    for tokens, bar in {192: 1.5, 1024: 1.2}.items():
        steps, found, met = rows[rows["tokens"] == tokens], NOT_MEASURED, ""
        if len(steps):
            ratio = ratios_to(PLAIN, steps)["all sites"]
            found = f"{ratio.median():.2f} ({ratio.min():.2f} to {ratio.max():.2f})"
            met = "met" if ratio.median() <= bar else "**missed**"
        body.append([f"{tokens} tokens", found, f"{bar:g}", met])
    return table(["", "all sites / no probes", "bar", ""], body)


def low_rank_steps() -> str:
    """``1.08 and 1.20``: steps that measure activations, and all sites, over plain ones."""
    steps = read("bench/probes").query("way == 'fold' and rank == 16 and tokens == 1024")
    ratios = ratios_to(PLAIN, steps).median()
    return f"{ratios['activations']:.2f} and {ratios['all sites and spectra']:.2f}"


def inference() -> str:
    """The cost of merged and unmerged adapters, by phase."""
    costs = inference_costs(read("infer_cost/infer_cost"))
    body = []
    for form, places in (("merged", 3), ("unmerged", 2)):
        entries = [_range(costs, form, phase, places) for phase in ("prefill", "decode")]
        body.append([f"{form} adapters", *entries])
    return table(["", f"prefill of {_tokens(costs)} tokens", "decoding"], body)


def merged() -> str:
    """``0.98 to 1.01``: the time of merged adapters over that of the base."""
    costs = inference_costs(read("infer_cost/infer_cost"))
    return _range(costs, "merged", "", 2)


def _range(costs: pd.DataFrame, form: str, phase: str, places: int) -> str:
    rows = costs[(costs["form"] == form) & ((costs["phase"] == phase) | (phase == ""))]
    return f"{rows['ratio'].min():.{places}f} to {rows['ratio'].max():.{places}f}"


def _tokens(costs: pd.DataFrame) -> int:
    return int(costs.loc[costs["phase"] == "prefill", "tokens"].iloc[0])


def faults() -> str:
    """What the last ``make faults`` that was committed printed."""
    path = RESULTS / "faults.txt"
    if not path.exists():
        raise NoTables(f"no {path.name}: run make faults, and copy results/faults.txt")
    return f"```\n{path.read_text().strip()}\n```"


def _bars(rows: Sequence[tuple[str, float, float, float | None]]) -> str:
    """Rows of (what, PEFT's seconds, our seconds, bar); None for a row without a bar."""
    body = []
    for what, peft, ours, bar in rows:
        ratio = peft / ours
        met = "" if bar is None else "met" if ratio >= bar else "**missed**"
        goal = "" if bar is None else f"{bar:g}"
        body.append([what, f"{peft:.3g} s", f"{ours:.3g} s", f"{ratio:.2f}", goal, met])
    return table(["", "PEFT", "ours", "ratio", "bar", ""], body)


BLOCKS: dict[str, Block] = {
    **{f"on-{suite}": partial(ran_on, suite) for suite in TABLES},
    "speed": speed,
    "sweep": sweep,
    "sweep-bars": sweep_bars,
    "flops": flops,
    "large-steps": large_steps,
    "large-bars": large_bars,
    "compiled": compiled,
    "peak": peak,
    "products": products,
    "probes": probes,
    "probed-steps": probed_steps,
    "low-rank-steps": low_rank_steps,
    "inference": inference,
    "merged": merged,
    "faults": faults,
}
"""By the name in the documents."""
