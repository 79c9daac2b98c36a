"""The blocks of docs/start.md, measured.md and conditions.md: the quick study, and that of p*."""

import os
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from unittest import mock

from docs.blocks import QUICK, Block, study_tables
from study.cli.tables import conclude, print_table
from study.report import answer, answer_table, asked
from study.report.sections import exponent_section, p_star_section, short
from study.report.text import Table, bullets, minus, table_of
from study.vocabulary.thresholds import STABLE_RATIO
from study.vocabulary.verdicts import VERDICTS, meaning

TERMINAL = 100
"""Columns of the terminal that the documents show."""
P_STAR = "stable_exponent"
"""The folder of the study of p*, in ``results/reference``."""


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


BLOCKS: dict[str, Block] = {
    "printed-answer": printed_answer,
    "condition": condition,
    "verdict-lines": verdict_lines,
    "verdict-words": verdict_words,
    "p-star": p_star,
}
"""By the name in the documents."""
