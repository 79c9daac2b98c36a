"""The blocks of docs/start.md, measured.md and conditions.md: the quick study, and that of p*."""

import textwrap

from rich.console import Console

from docs.blocks import QUICK, Block, study_tables
from study.analysis.terminal import render_texts
from study.figures.captions import settings
from study.report.answer import answer
from study.report.sections import condition_section, p_star_section, printed
from study.report.text import bullets, minus, table_of
from study.vocabulary.thresholds import STABLE_RATIO
from study.vocabulary.verdicts import VERDICTS, meaning

TERMINAL = 100
"""Columns of the terminal that the documents show."""
P_STAR = "stable_exponent"
"""The folder of the study of p*, in ``results/reference``."""


def printed_answer() -> str:
    """The end of ``make study``, as a terminal of 100 columns shows it."""
    tables = study_tables()
    head = textwrap.fill(f"{QUICK}: {settings(tables.cells)}", TERMINAL, subsequent_indent="  ")
    indented = {"initial_indent": "- ", "subsequent_indent": "  "}
    said = [textwrap.fill(line, TERMINAL, **indented) for line in answer(tables)]
    return "\n".join(["```", head, *said, "```"])


def condition() -> str:
    """The paper's condition in the quick study, at the first and at the last step."""
    found = condition_section(study_tables())
    return minus(f"{table_of(found['rows'])}\n\n{found['legend']}")


def verdict_lines() -> str:
    """The first lines of ``study analyze`` on the quick study."""
    title, rows, _, by = next(printed(study_tables()))
    first = rows[(rows[by] == rows[by].iloc[0]) & (rows["step"] == "0")]
    drawn = render_texts(title, first, by=by)
    console = Console(width=80, color_system=None, force_terminal=False)
    with console.capture() as text:
        console.print(drawn)
    lines = [line.rstrip() for line in text.get().splitlines()]
    return "\n".join(["```", *filter(None, lines), "```"])


def verdict_words() -> str:
    """The words of the verdicts and what each means."""
    return bullets([f"*{word}*: {meaning(word, STABLE_RATIO)}" for word in VERDICTS])


def p_star() -> str:
    """p* of every quantity at its first step, a line per optimizer."""
    return minus(bullets(p_star_section(study_tables(P_STAR))["sentences"]))


BLOCKS: dict[str, Block] = {
    "printed-answer": printed_answer,
    "condition": condition,
    "verdict-lines": verdict_lines,
    "verdict-words": verdict_words,
    "p-star": p_star,
}
"""By the name in the documents."""
