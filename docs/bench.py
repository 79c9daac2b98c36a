"""The blocks of the benchmarks: speed of training, probes and inference; and of `make faults`."""

import json

import pandas as pd

from benchmarks.inference_costs import inference_costs, inference_verdict
from benchmarks.summary import OURS, SECTIONS, processor
from docs.blocks import RESULTS, ROOT, Block
from docs.blocks import table as read
from study.report.text import bullets


def suite(name: str) -> str:
    """What ``study bench --read`` prints of a suite; ``sweep-pydoc-bf16`` is ``sweep``
    on that data, in that precision.
    """
    section = next(section for start, section in SECTIONS.items() if name.startswith(start))
    return section(read(f"bench/{name}"))


def ran_on(name: str) -> str:
    """The processor that a suite ran on."""
    return processor(read(f"bench/{name}"))


def _over_ours(rows: pd.DataFrame) -> tuple[dict[str, str], float]:
    """By way, its time over ours; and our seconds."""
    walls = rows.groupby("way")["seconds"].sum()
    return {way: f"{wall / walls[OURS]:.2f}×" for way, wall in walls.items()}, walls[OURS]


def inference() -> str:
    """The cost of merged and unmerged adapters, by phase."""
    return bullets(inference_verdict(inference_costs(read("infer_cost/infer_cost"))).splitlines())


def faster() -> str:
    """The README's three lines: a whole sweep, large steps, and a merged adapter at inference."""
    sweep, seconds = _over_ours(read("bench/sweep"))
    steps = read("bench/large-steps")
    large, _ = _over_ours(steps[steps["variant"].isin(["first step", "step"])])
    ranks = ", ".join(map(str, sorted(set(steps["rank"]))))
    costs = inference_costs(read("infer_cost/infer_cost"))
    ratio = costs.loc[costs["form"] == "merged", "ratio"]
    return bullets(
        [
            f"A rank sweep on SmolLM2 takes {seconds:.0f} s. PEFT takes {sweep['trainer']} as long "
            f"with the Trainer and {sweep['loop']} as long in a tuned loop ({ran_on('sweep')}, two "
            "threads).",
            f"With steps of 4096 tokens, the tuned loop takes {large['loop']} as long "
            f"(ranks {ranks}; {ran_on('large-steps')}, two threads).",
            f"At inference, a merged adapter takes {ratio.min():.2f} to {ratio.max():.2f} of the "
            "base's time, under either rule.",
        ]
    )


def small() -> str:
    """The card of ``model=small``, which the script that pretrained it wrote."""
    card = json.loads((ROOT / "study/models/small/card.json").read_text())
    curve = card["bits_per_byte"]
    steps = list(curve)
    half = min(steps, key=lambda step: abs(int(step) - int(steps[-1]) / 2))
    packages = ", ".join(f"{name} ({licence})" for name, licence in card["data"].items())
    context = [f"| {key} | {bits:.2f} |" for key, bits in card["bits_per_byte_by_context"].items()]
    return "\n".join(
        [
            f"- Text: the long strings in the source of {packages}; {card['bytes_in_corpus']:,} "
            f"bytes, of which it has read {card['bytes_trained']:,} once.",
            f"- Held-out text: {card['heldout']} {card['versions'][card['heldout']]}.",
            f"- Bits per byte there: {curve[steps[0]]:.2f} before training, {curve[half]:.2f} "
            f"after half of {int(steps[-1]):,} steps, {curve[steps[-1]]:.2f} at the end.",
            "",
            "| bytes before | bits per byte |",
            "|---|---|",
            *context,
        ]
    )


def printed(name: str) -> str:
    """What a script printed when its committed output, ``results/reference/name``, was made."""
    text = (RESULTS / name).read_text().strip()
    return text if name.endswith(".md") else f"```\n{text}\n```"


BLOCKS: dict[str, Block] = {
    "suite": suite,
    "ran-on": ran_on,
    "inference": inference,
    "faster": faster,
    "printed": printed,
    "small": small,
}
"""By the name in the documents."""
