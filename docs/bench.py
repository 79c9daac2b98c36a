"""The blocks of the benchmarks: speed of training, probes and inference; and of `make faults`."""

from collections.abc import Sequence

import pandas as pd

from benchmarks.inference_costs import inference_costs, inference_verdict
from benchmarks.summary import (
    LABELS,
    NOT_MEASURED,
    OURS,
    PLAIN,
    SECTIONS,
    medians,
    processor,
    ratios_to,
)
from docs.blocks import RESULTS, Block, NoTables
from docs.blocks import table as read
from study.report.text import bullets, table


def suite(name: str) -> str:
    """What ``study bench --read`` prints of a suite."""
    return SECTIONS[name](read(f"bench/{name}"))


def ran_on(name: str) -> str:
    """The processor that a suite ran on."""
    return processor(read(f"bench/{name}"))


def speed() -> str:
    """The README's table: whole sweeps, and seconds of a step, by way."""
    sweep, large = read("bench/sweep"), read("bench/large-steps")
    compiled = medians(read("bench/compiled"), "rank").loc[[16, 1024]]
    ratio = " · ".join(f"{one:.2f}" for one in compiled["loop"] / compiled["compiled"])
    ranks = " · ".join(map(str, compiled.index))
    body = [
        [*_whole("1024 tokens a step: the whole sweep", sweep), ran_on("sweep")],
        [*_by_rank("1024 tokens", sweep), ran_on("sweep")],
        [*_whole("4096 tokens a step: all steps (one rule)", _steps(large)), ran_on("large-steps")],
        [*_by_rank("4096 tokens", large), ran_on("large-steps")],
        [f"`pack.compile=true`, rank {ranks}, against the tuned loop", "", f"{ratio}×", ""],
        ["GPU", *[NOT_MEASURED] * 3, ""],
    ]
    body[4].append(ran_on("compiled"))
    ways = [LABELS["trainer"], LABELS["loop"], "ours"]
    return table(["SmolLM2, float32", *ways, "two threads of"], body)


def _steps(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["variant"].isin(["first step", "step"])]


def _whole(name: str, rows: pd.DataFrame) -> list[str]:
    """Each way's time over ours, and our seconds."""
    walls = rows.groupby("way")["seconds"].sum()
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


def goals() -> str:
    """Every goal and what was measured. A speed-up is PEFT's time over ours."""
    sweep, large, probes = (read(f"bench/{name}") for name in ("sweep", "large-steps", "probes"))
    steps = medians(sweep, "rank", "scaling")
    by_rank = medians(sweep, "rank")
    high = steps[steps.index.get_level_values("rank") >= 1024].sum()
    wall = sweep.groupby("way")["seconds"].sum()
    all_large = _steps(large).groupby("way")["seconds"].sum()
    rank_2048 = medians(large, "rank").loc[2048]
    runs = ratios_to("off", probes[probes["way"] == OURS]).median()
    single = probes[(probes["way"] == "fold") & (probes["rank"] == 1024)]
    probed = {
        tokens: ratios_to(PLAIN, single[single["tokens"] == tokens])["all sites"].median()
        for tokens in (192, 1024)
    }
    loop = "the tuned loop"
    at_least = [
        (f"speed-up over {loop}: twelve cells, set-up included", wall["loop"] / wall[OURS], 1.5),
        ("speed-up over the Trainer: the same", wall["trainer"] / wall[OURS], 1.7),
        (f"speed-up over {loop}: ranks from 1024", high["loop"] / high[OURS], 1.9),
        (f"speed-up over {loop}: the worst rank", (by_rank["loop"] / by_rank[OURS]).min(), 0.97),
        (f"speed-up over {loop}: 4096 tokens, all steps", all_large["loop"] / all_large[OURS], 1.9),
        (f"speed-up over {loop}: 4096 tokens, rank 2048", rank_2048["loop"] / rank_2048[OURS], 3.4),
    ]
    name = "with probes / without: "
    at_most = [
        (f"{name}activations, every step", runs["activations, every step"], 1.10),
        (f"{name}all sites, every 10 steps", runs["all sites, every 10 steps"], 1.03),
        (f"{name}a step of 192 tokens, all sites, rank 1024", probed[192], 1.5),
        (f"{name}a step of 1024 tokens, all sites, rank 1024", probed[1024], 1.2),
    ]
    body = [
        [what, f"{found:.2f}", f"{sign} {goal:g}", "met" if is_met else "**missed**"]
        for sign, rows in (("≥", at_least), ("≤", at_most))
        for what, found, goal in rows
        for is_met in [found >= goal if sign == "≥" else found <= goal]
    ]
    return table(["", "measured", "goal", ""], body)


def inference() -> str:
    """The cost of merged and unmerged adapters, by phase."""
    return bullets(inference_verdict(inference_costs(read("infer_cost/infer_cost"))).splitlines())


def merged() -> str:
    """``0.98 to 1.01``: the time of merged adapters over that of the base."""
    costs = inference_costs(read("infer_cost/infer_cost"))
    ratio = costs.loc[costs["form"] == "merged", "ratio"]
    return f"{ratio.min():.2f} to {ratio.max():.2f}"


def faults() -> str:
    """What the last ``make faults`` that was committed printed."""
    path = RESULTS / "faults.txt"
    if not path.exists():
        raise NoTables(f"no {path.name}: run make faults, and copy results/faults.txt")
    return f"```\n{path.read_text().strip()}\n```"


BLOCKS: dict[str, Block] = {
    "suite": suite,
    "ran-on": ran_on,
    "speed": speed,
    "goals": goals,
    "inference": inference,
    "merged": merged,
    "faults": faults,
}
"""By the name in the documents."""
