"""The blocks of single pages: README, start, measured, conditions; and the picture of serving."""

import os
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from unittest import mock

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from docs.blocks import QUICK, RESULTS, Block, study_tables
from docs.evidence import measured_in
from study.analysis.fits import mean_interval
from study.analysis.wording import interval_text
from study.cli.tables import conclude, print_table
from study.figures.style import figure, finish, paper
from study.report import answer, answer_table, asked
from study.report.sections import exponent_section, p_star_section, short
from study.report.text import Table, bullets, minus, table_of
from study.vocabulary.quantities import MODEL_WIDE
from study.vocabulary.thresholds import STABLE_RATIO
from study.vocabulary.verdicts import VERDICTS, meaning

STUDY = "paper_learning_rate"
SAME = 1.25
"""A factor of the rate that a tuner does not see."""
TERMINAL = 100
"""Columns of the terminal that the documents show."""
P_STAR = "stable_exponent"
"""The folder of the study of p*, in ``results/reference``."""
SERVED = {"server": ("as it is", "#c44e52", "x"), "folded": ("after study fold", "#4c72b0", "o")}


def best_rates(scaling: str, study: str = STUDY, steps: str = "20") -> "pd.Series[float]":
    """By rank, the geometric mean over seeds of the best rate under a rule after some steps."""
    own = study_tables(study).rates.query(f"scaling == '{scaling}' and steps == {steps}")
    return np.exp(np.log(own["best_lr"]).groupby(own["rank"]).mean())


def rate_change(scaling: str, study: str = STUDY, steps: str = "20") -> str:
    """``3.6 times lower``: how the best rate changes from the lowest to the highest rank."""
    best = best_rates(scaling, study, steps)
    factor = best.iloc[-1] / best.iloc[0]
    if 1 / SAME < factor < SAME:
        return "the same"
    return f"{factor:.1f} times higher" if factor > 1 else f"{1 / factor:.1f} times lower"


def best_gap(scaling: str, study: str = STUDY, steps: str = "20") -> str:
    """The loss of the highest rank less that of the lowest, each at the rate of its lowest mean."""
    where = f"how == 'best' and scaling == '{scaling}' and steps == {steps}"
    own = study_tables(study).losses.query(where)
    of_rank = own.pivot(index="seed", columns="rank", values="loss")
    gap = of_rank.iloc[:, -1] - of_rank.iloc[:, 0]
    return minus(interval_text(*mean_interval(gap), places=3))


def below_best(lr: str, study: str = STUDY) -> str:
    """``65``: how many times LoRA's best rate at the highest rank is as high as a rate."""
    return f"{best_rates('lora', study).iloc[-1] / float(lr):.0f}"


def norm_ratio(rank: str, step: str) -> str:
    """How many times as large rsLoRA's gradient norm is as LoRA's under AdamW, mean over seeds."""
    norms = measured_in("theorem_over_training", "adapter_grad", int(step))
    here = norms.query(f"layer == '{MODEL_WIDE}' and rank == {rank} and lr == 1e-4")
    mean = here.groupby(here["scaling"].astype(str))["norm"].mean()
    return f"{mean['rslora'] / mean['lora']:.1f}"


def terminal(show: Callable[[], None]) -> str:
    """What a command prints on a terminal of :data:`TERMINAL` columns."""
    with mock.patch.dict(os.environ, COLUMNS=str(TERMINAL)), redirect_stdout(StringIO()) as text:
        show()
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join(["```", *filter(None, lines), "```"])


def printed_answer() -> str:
    """The end of ``make study``."""
    tables = study_tables()
    found = asked(tables).asks, answer(tables), answer_table(tables)
    return terminal(lambda: conclude(QUICK, *found))


def condition() -> str:
    """The paper's condition in the quick study, at the first and at the last step."""
    found = answer_table(study_tables())
    return minus(f"{table_of(found.rows)}\n\n{found.notes}")


def verdict_lines() -> str:
    """The first lines of ``study analyze`` on the quick study."""
    section = exponent_section(study_tables())
    assert section is not None
    [table] = section.tables
    rows = [row for row in table.rows if row["step"] == "0"]
    by = "optimizer, rule"
    first = Table([row for row in rows if row[by] == rows[0][by]], "", table.title)
    return terminal(lambda: print_table(short(first)))


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


BLOCKS: dict[str, Block] = {
    "printed-answer": printed_answer,
    "condition": condition,
    "verdict-lines": verdict_lines,
    "verdict-words": verdict_words,
    "p-star": p_star,
    "rate-change": rate_change,
    "best-gap": best_gap,
    "below-best": below_best,
    "norm-ratio": norm_ratio,
}
"""By the name in the documents."""
