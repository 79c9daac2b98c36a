"""The blocks of single pages: README, start, measured, conditions, small; of the benchmarks and of
what scripts printed; and the picture of serving."""

import json
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from unittest import mock

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.inference_costs import inference_costs, inference_verdict
from benchmarks.summary import OURS, SECTIONS, processor
from docs.blocks import QUICK, RESULTS, ROOT, study_tables
from docs.blocks import table as read
from docs.evidence import measured_in
from study.cli.tables import conclude, print_table
from study.figures.style import figure, finish, paper
from study.report import answer, answer_table, asked
from study.report.sections import exponent_section, p_star_section, short
from study.report.text import Table, bullets, minus, table, table_of
from study.vocabulary.quantities import MODEL_WIDE
from study.vocabulary.thresholds import STABLE_RATIO
from study.vocabulary.verdicts import VERDICTS, meaning

TERMINAL = 100
"""Columns of the terminal that the documents show."""
P_STAR = "stable_exponent"
"""The folder of the study of p*, in ``results/reference``."""
SERVED = {"server": ("as it is", "#c44e52", "x"), "folded": ("after study fold", "#4c72b0", "o")}


def norm_ratio(rank: str, step: str) -> str:
    """How many times as large rsLoRA's gradient norm is as LoRA's under AdamW, mean over seeds."""
    norms = measured_in("theorem_over_training", "adapter_grad", int(step))
    here = norms.query(f"layer == '{MODEL_WIDE}' and rank == {rank} and lr == 1e-4")
    mean = here.groupby(here["scaling"].astype(str))["norm"].mean()
    return f"{mean['rslora'] / mean['lora']:.1f}"


def _terminal(show: Callable[[], None]) -> str:
    """What a command prints on a terminal of :data:`TERMINAL` columns."""
    with mock.patch.dict(os.environ, COLUMNS=str(TERMINAL)), redirect_stdout(StringIO()) as text:
        show()
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join(["```", *filter(None, lines), "```"])


def printed_answer() -> str:
    """The end of ``make study``."""
    tables = study_tables()
    found = asked(tables).asks, answer(tables), answer_table(tables)
    return _terminal(lambda: conclude(QUICK, *found))


def condition() -> str:
    """The paper's condition in the quick study, at the first and at the last step."""
    found = answer_table(study_tables())
    return minus(f"{table_of(found.rows)}\n\n{found.notes}")


def verdict_lines() -> str:
    """The first lines of ``study analyze`` on the quick study."""
    section = exponent_section(study_tables())
    assert section is not None
    [shown] = section.tables
    rows = [row for row in shown.rows if row["step"] == "0"]
    by = "optimizer, rule"
    first = Table([row for row in rows if row[by] == rows[0][by]], "", shown.title)
    return _terminal(lambda: print_table(short(first)))


def verdict_words() -> str:
    """The words of the verdicts and what each means."""
    return bullets([f"*{word}*: {meaning(word, STABLE_RATIO)}" for word in VERDICTS])


def p_star() -> str:
    """p* of every quantity at its first step, a line per optimizer."""
    section = p_star_section(study_tables(P_STAR))
    assert section is not None
    return minus(bullets(section.text[1:]))


def served() -> pd.DataFrame:
    """By rank, prompt and token: log-probabilities of the base, of PEFT, and of the server, which
    ``tests/integrations/llama_cpp.py`` measures."""
    return pd.read_csv(RESULTS / "served.csv")


@paper()
def picture() -> Figure:
    """The server's log-probabilities against PEFT's, a panel per rank of rsLoRA."""
    ranks = served()["rank"].unique()
    page = figure(1, len(ranks), ratio=1.0, above=0.35)
    drawn = served()[["peft", *SERVED]]
    ends = drawn.min().min() - 0.1, drawn.max().max() + 0.1
    panels = page.subplots(1, len(ranks), sharex=True, sharey=True)
    for ax, rank in zip(panels, ranks, strict=True):
        rows = served().query(f"rank == {rank}")
        ax.axline((0, 0), slope=1, color="0.6", linewidth=0.8, zorder=0)
        for column, (label, colour, marker) in SERVED.items():
            ax.scatter(rows["peft"], rows[column], 9, colour, marker, linewidths=0.8, label=label)
        off = np.abs(rows["server"] - rows["peft"]).max()
        ax.set_title(f"rank {rank}: off by up to {off:.2g} nats")
        ax.set(xlabel="log-probability in PEFT", xlim=ends, ylim=ends)
    panels[0].set_ylabel("log-probability in llama.cpp")
    panels[0].legend(loc="upper left", frameon=False)
    return finish(page)


# ---- benchmarks, and what scripts printed


def suite(name: str) -> str:
    """What ``study bench --read`` prints of a suite; ``sweep-pydoc-bf16`` is ``sweep``
    on that data, in that precision.
    """
    section = next(section for start, section in SECTIONS.items() if name.startswith(start))
    return section(read(f"bench/{name}"))


def ran_on(name: str) -> str:
    """The processor that a suite ran on."""
    return processor(read(f"bench/{name}"))


def inference() -> str:
    """The cost of merged and unmerged adapters, by phase."""
    return inference_verdict(inference_costs(read("bench/inference")))


def faster() -> str:
    """The README's three lines: a whole sweep, large steps, and a merged adapter at inference."""
    sweep, steps = read("bench/sweep"), read("bench/large-steps")
    steps = steps[steps["variant"].isin(["first step", "step"])]
    whole, large = (rows.groupby("way")["seconds"].sum() for rows in (sweep, steps))
    ranks = ", ".join(map(str, sorted(set(steps["rank"]))))
    costs = inference_costs(read("bench/inference"))
    ratio = costs.loc[costs["form"] == "merged", "ratio"]
    return bullets(
        [
            f"A rank sweep on SmolLM2 takes {whole[OURS]:.0f} s. PEFT takes "
            f"{whole['trainer'] / whole[OURS]:.2f}× as long with the Trainer and "
            f"{whole['loop'] / whole[OURS]:.2f}× as long in a tuned loop ({ran_on('sweep')}, two "
            "threads).",
            "With steps of 4096 tokens, the tuned loop takes "
            f"{large['loop'] / large[OURS]:.2f}× as long "
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
    context = [[key, f"{bits:.2f}"] for key, bits in card["bits_per_byte_by_context"].items()]
    lines = [
        f"Text: the long strings in the source of {packages}; {card['bytes_in_corpus']:,} "
        f"bytes, of which it has read {card['bytes_trained']:,} once.",
        f"Held-out text: {card['heldout']} {card['versions'][card['heldout']]}.",
        f"Bits per byte there: {curve[steps[0]]:.2f} before training, {curve[half]:.2f} "
        f"after half of {int(steps[-1]):,} steps, {curve[steps[-1]]:.2f} at the end.",
    ]
    return f"{bullets(lines)}\n\n{table(['bytes before', 'bits per byte'], context)}"


def printed(name: str) -> str:
    """What a script printed when its committed output, ``results/reference/name``, was made."""
    text = (RESULTS / name).read_text().strip()
    return text if name.endswith(".md") else f"```\n{text}\n```"
