"""The blocks of single pages, of benchmarks, of what scripts printed, and of ``study advise``."""

import os
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from itertools import product
from textwrap import fill
from unittest import mock

import numpy as np
import pandas as pd
from click.testing import CliRunner

from benchmarks.summary import OURS, SECTIONS, processor
from research.blocks import QUICK, RESULTS, bullets, study_tables
from research.blocks import table as read
from study.analysis.advice import lost_in_bf16
from study.analysis.capacity import departures
from study.analysis.law import Setting
from study.analysis.text import Table, minus, table, table_of
from study.cli import advise as advise  # the command of advice(), and code of its key
from study.cli.group import cli
from study.cli.tables import conclude, print_table
from study.report import answer, answer_table, asked
from study.report.sections import exponent_section, p_star_section, short
from study.vocabulary.scaling import RULES, rule_label
from study.vocabulary.thresholds import STABLE_RATIO
from study.vocabulary.verdicts import VERDICTS, meaning

TERMINAL = 100
"""Columns of the terminal that the documents show."""


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
    section = p_star_section(study_tables("stable_exponent"))
    assert section is not None
    return minus(bullets(section.text[1:]))


def served() -> str:
    """By rank, how far llama.cpp's log-probabilities are from PEFT's at most, which
    ``tests/integrations/llama_cpp.py`` measures."""
    found = pd.read_csv(RESULTS / "served.csv").set_index("rank")
    off = found[["server", "folded"]].sub(found["peft"], axis=0).abs().groupby("rank").max()
    heads = ["rank of rsLoRA", "served as it is: off by up to", "after study fold"]
    body = [[str(row.Index), f"{row.server:.2g}", f"{row.folded:.2g}"] for row in off.itertuples()]
    return table(heads, body)


# ---- benchmarks, and what scripts printed


def suite(name: str) -> str:
    """What ``study bench --read`` prints of a suite; ``sweep-pydoc-bf16`` is ``sweep``
    on that data, in that precision.
    """
    section = next(section for start, section in SECTIONS.items() if name.startswith(start))
    return section(read(f"bench/{name}"))


def faster() -> str:
    """Two lines of the README: a whole sweep, and large steps."""
    sweep, steps = read("bench/sweep"), read("bench/large-steps")
    steps = steps[steps["variant"].isin(["first step", "step"])]
    whole, large = (rows.groupby("way")["seconds"].sum() for rows in (sweep, steps))
    ranks = ", ".join(map(str, sorted(set(steps["rank"]))))
    return (
        f"- A rank sweep on SmolLM2 (ranks {min(sweep['rank'])} to {max(sweep['rank'])}, two "
        f"rules) takes {whole[OURS]:.0f} s. PEFT takes "
        f"{whole['trainer'] / whole[OURS]:.2f}× as long with the Trainer and "
        f"{whole['loop'] / whole[OURS]:.2f}× as long in a tuned loop ({processor(sweep)}, two "
        f"threads).\n- With steps of 4096 tokens, the tuned loop takes "
        f"{large['loop'] / large[OURS]:.2f}× as long (ranks {ranks}; {processor(steps)}, two "
        "threads)."
    )


def printed(name: str) -> str:
    """What a script printed when its committed output, ``results/reference/name``, was made."""
    text = (RESULTS / name).read_text().strip()
    return text if name.endswith(".md") else f"```\n{text}\n```"


# ---- what ``study advise`` prints and knows


def advice(*arguments: str) -> str:
    """The lines of ``study advise``, in a fence, the long ones wrapped."""
    ran = CliRunner().invoke(cli, ["advise", *arguments], catch_exceptions=False)
    lines = [f"$ study advise {' '.join(arguments)}", *ran.output.splitlines()]
    wrapped = (fill(x, 110, subsequent_indent="    ", break_on_hyphens=False) for x in lines)
    return "\n".join(["```", *wrapped, "```"])


def lost(alpha: str, lr: str, *ranks: str) -> str:
    """The share of an adapter's output that bf16 loses by theory: a row per rule and rank."""
    body = []
    for name, rank in product(("lora", "rslora"), ranks):
        shares = lost_in_bf16(Setting(int(rank), float(alpha), name, "adamw"), float(lr)).values()
        body.append([RULES[name].label, rank, *(f"{100 * share:.0f} %" for share in shares)])
    return table(["rule", "rank", "lost after 1 update", "after 10"], body)


def stored(name: str) -> str:
    """What adapters stored: the answer of a study."""
    return minus(bullets(answer(study_tables(name))))


def fell_behind(*names: str) -> str:
    """The step at which each rank falls behind the highest one, measured and expected."""
    found = pd.concat([departures(study_tables(name)).assign(study=name) for name in names])
    never = found[["step", "expected"]].isna()
    ratio = found["step"] / found["expected"]
    near = (never.all(axis=1) | ratio.between(0.5, 2)).sum()
    body = []
    found = found[~never.all(axis=1)].sort_values(["study", "data", "steps", "scaling", "rank"])
    for row in found.itertuples():
        known = (row.step, row.expected, row.expected_low, row.expected_high)
        step, mean, *ends = ("never" if np.isnan(x) else f"{x:.0f}" for x in known)
        times = "" if np.isnan(row.step / row.expected) else f"{row.step / row.expected:.2g}"
        rule = rule_label(row.scaling, row.exponent_p, row.crossover)
        runs = [row.study, row.data, f"{row.steps:g}", rule, f"{row.rank:g}"]
        own = [str(row.seeds), f"{row.parameters:,.0f}", step, f"{mean} [{', '.join(ends)}]", times]
        body.append([*runs, *own])
    heads = ["study", "data", "steps", "rule", "rank", "seeds", "parameters", "behind from step"]
    said = (
        f"{near} of {len(never)} settings are as expected: within a factor of 2, or never in both "
        f"({never.all(axis=1).sum()} of them). All in which a rank falls behind, or should:"
    )
    return f"{said}\n\n{table([*heads, 'expected', 'measured / expected'], body)}"
