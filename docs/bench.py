"""The blocks of the benchmarks: speed of training, probes and inference; and of `make faults`."""

from collections.abc import Sequence

import pandas as pd

from benchmarks.inference_costs import inference_costs, inference_verdict
from benchmarks.summary import LABELS, NOT_MEASURED, OURS, SECTIONS, medians, processor
from docs.blocks import RESULTS, Block, NoTables
from docs.blocks import table as read
from study.report.text import bullets, table


def suite(name: str) -> str:
    """What ``study bench --read`` prints of a suite; ``sweep-pydoc`` is ``sweep`` on that data."""
    return SECTIONS[name.removesuffix("-pydoc")](read(f"bench/{name}"))


def ran_on(name: str) -> str:
    """The processor that a suite ran on."""
    return processor(read(f"bench/{name}"))


def speed() -> str:
    """Whole sweeps, and seconds of a step, by way."""
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


def inference() -> str:
    """The cost of merged and unmerged adapters, by phase."""
    return bullets(inference_verdict(inference_costs(read("infer_cost/infer_cost"))).splitlines())


def faster() -> str:
    """The README's three lines: a whole sweep, large steps, and a merged adapter at inference."""
    sweep, large = read("bench/sweep"), _steps(read("bench/large-steps"))
    costs = inference_costs(read("infer_cost/infer_cost"))
    ratio = costs.loc[costs["form"] == "merged", "ratio"]
    _, trainer, loop, seconds = _whole("", sweep)
    return bullets(
        [
            f"A rank sweep on SmolLM2 takes {seconds}. PEFT takes {trainer} as long with the "
            f"Trainer and {loop} as long in a tuned loop ({ran_on('sweep')}, two threads).",
            f"With steps of 4096 tokens, the tuned loop takes {_whole('', large)[2]} as long "
            f"({ran_on('large-steps')}, two threads).",
            f"At inference, a merged adapter takes {ratio.min():.2f} to {ratio.max():.2f} of the "
            "base's time, under either rule.",
        ]
    )


def faults() -> str:
    """What the last ``make faults`` that was committed printed."""
    path = RESULTS / "faults.txt"
    if not path.exists():
        raise NoTables(f"no {path.name}: run make faults, and copy results/faults.txt")
    return f"```\n{path.read_text().strip()}\n```"


def printed(name: str) -> str:
    """What a script printed when its committed output was made: ``results/reference/name.md``."""
    path = RESULTS / f"{name}.md"
    if not path.exists():
        raise NoTables(f"no {path.name}")
    return path.read_text().strip()


BLOCKS: dict[str, Block] = {
    "suite": suite,
    "ran-on": ran_on,
    "speed": speed,
    "inference": inference,
    "faster": faster,
    "faults": faults,
    "printed": printed,
}
"""By the name in the documents."""
