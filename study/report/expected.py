"""The report's section on the experiment's expectations, and the sentence on its primary test."""

import math
from collections import Counter
from collections.abc import Sequence

from study.analysis.expectations import Answer, Compared, answer, compare
from study.analysis.text import Section, Table, joined, quantity_text
from study.analysis.wording import TESTED, factor_text, interval_text
from study.config.expectations import (
    FACTOR,
    MEANINGS,
    WHAT_LABELS,
    Entry,
    Expectation,
    Primary,
    read_entries,
)
from study.errors import count_noun
from study.report.provenance import UNREADABLE, Record
from study.store import StudyTables
from study.vocabulary.optimizers import label
from study.vocabulary.quantities import BATCH_NAMES, DISTANCES, TRAIN
from study.vocabulary.scaling import named_rule, rule_label
from study.vocabulary.verdicts import AGREES, DIFFERS, UNCLEAR


def expected_section(
    tables: StudyTables, records: Sequence[Record], late: Sequence[Entry] = ()
) -> Section | None:
    """Every expectation, with measured values and verdicts; None without expectations. ``late``: of
    :func:`primary_answers`."""
    held = held_expectations(records)
    found = compare([one for one, _ in held], tables)
    if not found:
        return None
    answers = [primary_details(one) for one, _ in primary_answers(tables, records, late)]
    cells = sum(record.get("status") != UNREADABLE for record in records)
    some = sum(count < cells for _, count in held)
    said = (
        f"{count_noun(len(found), 'comparison')}, {counts_apart(found)}. Each cell keeps the "
        "expectations that were stated when it began. Identities follow from B = 0, a random A and "
        "measured alignments: they are about the first steps. Predictions are about training."
    )
    if some:
        said += (
            f" {count_noun(some, 'expectation')} of these are in the configuration of only some "
            "cells, because the experiment was changed between them."
        )
    words = {row.verdict for row in found}
    meanings = "; ".join(f"*{word}*: {MEANINGS[word]}" for word in MEANINGS if word in words)
    rows = [compared_row(row) for row in found]
    return Section(
        "What was expected, and what was measured?",
        [said, *answers],
        [Table(rows, f"{meanings}. {TESTED}")],
    )


def held_expectations(records: Sequence[Record]) -> list[tuple[Expectation, int]]:
    """Every expectation in the order of the cells' beginning, and its number of cells."""
    began = sorted(records, key=lambda record: str(record.get("started", "")))
    every = [one for record in began for one in read_entries(record.get("expects", []))]
    held = {repr(one): one for one in reversed(every)}
    counts = Counter(map(repr, every)).items()
    return [(one, n) for key, n in counts if isinstance(one := held[key], Expectation)]


def primary_answers(
    tables: StudyTables, records: Sequence[Record], late: Sequence[Entry] = ()
) -> list[tuple[Answer, bool]]:
    """The result of every primary test, and whether it was stated after the first cell had run.
    ``late``: the entries that are read if no cell holds one."""
    held = {repr(record.get("expects", [])): record.get("expects", []) for record in records}
    stated = [entries for entries in map(read_entries, held.values()) if _primary(entries)]
    # A record may have more single expectations than another: a test is one of equal rows.
    tests = {
        repr((one, one.of(entries))): (one, entries)
        for entries in stated or [list(late)]
        for one in _primary(entries)
    }
    found = [answer(one, entries, tables) for one, entries in tests.values()]
    first = min(records, key=lambda record: str(record.get("started", "")), default={})
    is_late = not _primary(read_entries(first.get("expects", [])))
    return [(one, is_late) for one in found if one]


def _primary(entries: Sequence[Entry]) -> list[Primary]:
    return [one for one in entries if isinstance(one, Primary)]


def primary_text(found: Answer, is_late: bool) -> str:
    """The verdict in a sentence: ``Primary test of 4 exponents: they are as theory says ...``.
    Empty if the test decided nothing: :func:`primary_details` has its numbers."""
    off, tolerance = found.deviation(found.predicted), found.primary.tolerance
    verdict = {
        AGREES: f"as theory says, within {tolerance:g}",
        DIFFERS: f"not as theory says: {off:.2g} from it, not within {tolerance:g}",
    }.get(found.verdict)
    if verdict is None:
        return ""
    number, about = len(found.predicted), ""
    if found.is_identity:
        about = f", which follow{'s' if number == 1 else ''} from B = 0 and a random A"
    late = ". The test was stated after the cells had run" if is_late else ""
    return f"Primary test of {count_noun(number, 'exponent')}{about}: {verdict}{late}."


def primary_details(found: Answer) -> str:
    """The numbers of a primary test: deviations from theory and rival, and the line."""
    intercept, slope = (interval_text(*found.interval(which), places=3) for which in (0, 1))
    of_line = (
        f"intercept {intercept}, slope {slope}"
        if math.isfinite(found.interval(1)[0])
        else f"mean deviation {intercept}, all with one predicted value"
    )
    near, far = (found.deviation(theory) for theory in (found.predicted, found.rival))
    verdict = found.verdict if found.verdict in (AGREES, DIFFERS) else f"is {UNCLEAR}"
    if len(found.predicted) == 1:
        return (
            f"The primary test {verdict}: its exponent minus theory's is {intercept} (tolerance "
            f"{found.primary.tolerance:g}). It is {far:.3f} from the rival ({found.primary.rival})."
        )
    return (
        f"The primary test {verdict}: its exponents are {near:.3f} from theory, as "
        f"a root mean square, and {far:.3f} from the rival ({found.primary.rival}). The line of "
        f"measured on predicted exponents: {of_line} (tolerance {found.primary.tolerance:g}). It "
        "asks about all exponents at once, and each row below about one, at its own tolerance and "
        "stricter. So rows may be unclear where the test agrees."
    )


def verdict_counts(rows: Sequence[Compared] | Sequence[Answer]) -> str:
    """``2 agree, 1 **differs** and 3 unclear``."""
    counts = Counter(row.verdict for row in rows)
    parts = []
    for word in MEANINGS:
        number = counts[word]
        form = word.removesuffix("s") if number > 1 and word in (AGREES, DIFFERS) else word
        if number:
            parts.append(f"{number} {_bold(word, form)}")
    return joined(parts) if parts else "none"


def counts_apart(rows: Sequence[Compared]) -> str:
    """``identities: 6 agree; predictions: 2 agree and 1 **differs**``."""
    kinds = {
        name: [row for row in rows if row.expectation.is_identity == which]
        for name, which in (("identities", True), ("predictions", False))
    }
    return "; ".join(f"{name}: {verdict_counts(own)}" for name, own in kinds.items() if own)


def _bold(word: str, text: str) -> str:
    """``text``, in bold if the verdict ``word`` is a difference."""
    return f"**{text}**" if word == DIFFERS else text


def compared_row(row: Compared) -> dict[str, str]:
    one = row.expectation
    rule = "" if one.rule is None else rule_label(*named_rule(one.rule))
    given = {"alpha": one.alpha, "lr": one.lr, "eps": one.eps}
    settings = [f"{name}={value:g}" for name, value in given.items() if value is not None]
    quantity = (
        quantity_text(one.site, str(one.stat)) if one.site else DISTANCES.get(one.measure or "", "")
    )
    if one.of and one.against:
        sides = (", ".join(f"{k}={v}" for k, v in of.items()) for of in (one.of, one.against))
        quantity = f"loss, {' minus '.join(sides)}"
    batch = BATCH_NAMES[one.batch] if (one.site or one.of) and one.batch != TRAIN else ""
    place = ", ".join(filter(None, (one.layer or one.kind, batch)))
    step = one.step if row.step is None else row.step
    curve = (label(one.optimizer), rule, *settings, row.curve)
    return {
        "optimizer, rule": ", ".join(filter(None, curve)),
        "quantity": f"{quantity} ({place})" if place else quantity,
        "what": WHAT_LABELS[one.what],
        "step": "" if step is None else str(step),
        "expected": expected_text(one),
        "measured": measured_text(row),
        "verdict": _bold(row.verdict, row.verdict),
        "source": one.source,
    }


def expected_text(one: Expectation) -> str:
    """``0.5 ± 0.02``."""
    if one.what == FACTOR:
        return f"{factor_text(one.predicted)}, within a factor of {one.tolerance:g}"
    once = f", once {one.once}" if one.once else ""
    return f"{one.predicted:g} ± {one.tolerance:g}{once}"


def measured_text(row: Compared) -> str:
    """``0.502 [0.499, 0.505]``. Three digits, because tolerances may be as small as 0.01."""
    numbers = row.measured, row.low, row.high
    if math.isnan(row.measured):
        return ""
    if row.expectation.what != FACTOR:
        return interval_text(*numbers, places=3)
    value, low, high = map(factor_text, numbers)
    return f"{value} [{low}, {high}]" if low and high else value
