"""What the committed studies say about each expectation, read from their tables once."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import yaml

from docs.blocks import RESULTS, ROOT, study_tables
from study.analysis.expectations import Compared, compare
from study.report.expected import held_expectations
from study.report.literal import Record, literal_record
from study.report.records import records_of
from study.vocabulary.expectations import Expectation, read_expectation


@cache
def records(study: str) -> Sequence[Record]:
    """The records of a committed study. Raises :class:`~docs.blocks.NoTables`."""
    return records_of(RESULTS / study, study_tables(study))


@cache
def expectations(study: str) -> tuple[Sequence[Expectation], bool]:
    """The expectations on a study, and whether its cells hold them.

    The first studies are older than expectations. Those of their experiment's file were written
    after the data.
    """
    held = held_expectations([literal_record(record) for record in records(study)])
    if held:
        return [one for one, _ in held], True
    file = ROOT / f"conf/experiment/{study}.yaml"
    entries = yaml.safe_load(file.read_text()).get("expects", [])
    found = [read_expectation(entry) for entry in entries]
    return [one for one in found if one is not None], False


@cache
def compared(study: str) -> Sequence[Compared]:
    """Every expectation on a study, beside what was measured."""
    return compare(expectations(study)[0], study_tables(study))


def matching(study: str, where: Mapping[str, Any]) -> list[Compared]:
    """Those of :func:`compared` whose expectation has these fields. ``p``: that of its rule."""

    def matches(one: Expectation) -> bool:
        return all(_equal(getattr(one, name), value) for name, value in where.items())

    return [row for row in compared(study) if matches(row.expectation)]


def _equal(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, float | int) and isinstance(found, float | int):
        return abs(found - wanted) < 1e-9
    return bool(found == wanted)
