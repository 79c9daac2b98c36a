"""The report's section on what the experiment expected, beside what was measured."""

import math
from collections import Counter
from collections.abc import Sequence

from study.analysis.expectations import Compared, compare
from study.analysis.wording import TESTED, factor_text
from study.config.expectations import (
    FACTOR,
    MEANINGS,
    WHAT_LABELS,
    Expectation,
    read_expectation,
)
from study.report.provenance import UNREADABLE, Record
from study.report.text import Block, Details, count_noun, joined, quantity_text, table
from study.store import StudyTables
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import BATCH_NAMES, DISTANCES, TRAIN
from study.vocabulary.scaling import named_rule, rule_label
from study.vocabulary.verdicts import AGREEMENTS, DIFFERS

Held = tuple[Expectation, int]
"""An expectation, and the number of cells that hold it."""


def expected_section(tables: StudyTables, records: Sequence[Record]) -> list[Block]:
    """Expected and measured values with their verdicts; empty if no cell holds an expectation."""
    held = held_expectations(records)
    found = compare([one for one, _ in held], tables)
    if not found:
        return []
    words = {row.verdict for row in found}
    legend = "; ".join(f"*{word}*: {MEANINGS[word]}" for word in MEANINGS if word in words)
    heads = ["optimizer, rule", "quantity", "what", "step", "expected", "measured", "verdict"]
    heads += ["source", "refuted by"]
    cells = sum(record.get("status") != UNREADABLE for record in records)
    some = sum(count < cells for _, count in held)
    note = (
        f" {count_noun(some, 'expectation')} of these stood in the configuration of only some of "
        "the cells: the experiment was changed between them."
        if some
        else ""
    )
    return [
        "## Expected and measured\n\nThe experiment stated what it expects, and each cell keeps "
        f"what was stated when it began. Of {count_noun(len(found), 'comparison')}: "
        f"{verdict_counts(found)}.{note}",
        Details(
            f"Table: {count_noun(len(found), 'comparison')} with source and verdict",
            f"{table(heads, [compared_line(row) for row in found])}\n\n{legend}. {TESTED}",
        ),
    ]


def held_expectations(records: Sequence[Record]) -> list[Held]:
    """Every expectation that some cell holds, in the order of the cells' beginning."""
    held: list[Held] = []
    for record in sorted(records, key=lambda record: str(record.get("started", ""))):
        for one in filter(None, map(read_expectation, record.get("expects", []))):
            place = next((n for n, (other, _) in enumerate(held) if other == one), None)
            if place is None:
                held.append((one, 1))
            else:
                held[place] = one, held[place][1] + 1
    return held


def verdict_counts(rows: Sequence[Compared]) -> str:
    """``2 agree, 1 **differs** and 3 unclear``."""
    words = Counter(row.verdict for row in rows)
    return joined([_counted(words[word], word) for word in MEANINGS if word in words])


def _counted(number: int, word: str) -> str:
    form = word.removesuffix("s") if number > 1 and word in AGREEMENTS else word
    return f"{number} {_bold(word, form)}"


def _bold(word: str, text: str) -> str:
    """``text``, which stands for ``word``; bold if that is a difference."""
    return f"**{text}**" if word == DIFFERS else text


def compared_line(row: Compared) -> list[str]:
    """A row of the section's table."""
    one = row.expectation
    rule = "" if one.rule is None else rule_label(*named_rule(one.rule))
    place = ", ".join(filter(None, (one.layer or one.kind, _batch(one))))
    quantity = DISTANCES.get(one.measure or "", "")
    if one.site is not None:
        quantity = quantity_text(one.site, str(one.stat))
    step = one.step if row.step is None else row.step
    return [
        ", ".join(filter(None, (label(one.optimizer), rule, row.curve))),
        f"{quantity} ({place})" if place else quantity,
        WHAT_LABELS[one.what],
        "" if step is None else str(step),
        expected_text(one),
        measured_text(row),
        _bold(row.verdict, row.verdict),
        one.source,
        one.refuted_by,
    ]


def _batch(one: Expectation) -> str:
    """The batch that a quantity is read on, unless it is the training batch."""
    return "" if one.site is None or one.batch == TRAIN else BATCH_NAMES[one.batch]


def expected_text(one: Expectation) -> str:
    """``0.5 ± 0.02``."""
    if one.what == FACTOR:
        return f"{factor_text(one.predicted)}, within a factor of {one.tolerance:g}"
    return f"{one.predicted:g} ± {one.tolerance:g}"


def _three_digits(row: Compared) -> str:
    """``0.502 [0.499, 0.505]``: tolerances may be as small as 0.01."""
    if math.isnan(row.measured):
        return ""
    value, low, high = (f"{round(n, 3) + 0.0:.3f}" for n in (row.measured, row.low, row.high))
    return value if math.isnan(row.low) else f"{value} [{low}, {high}]"


def measured_text(row: Compared) -> str:
    """``0.502 [0.499, 0.505]``: the value and its 95 % interval."""
    if row.expectation.what != FACTOR:
        return _three_digits(row)
    bounds = [factor_text(row.low), factor_text(row.high)]
    return (
        f"{factor_text(row.measured)} [{', '.join(bounds)}]"
        if all(bounds)
        else (factor_text(row.measured))
    )
