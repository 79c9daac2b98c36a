"""What the committed studies say about each expectation, read from their tables once."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from docs.blocks import RESULTS, study_tables
from study.analysis.expectations import Compared, compare
from study.config.expectations import Expectation
from study.report.expected import held_expectations
from study.report.provenance import Record, records_of


@cache
def records(study: str) -> Sequence[Record]:
    """The records of a committed study. Raises :class:`~docs.blocks.NoTables`."""
    return records_of(RESULTS / study, study_tables(study))


@cache
def expectations(study: str) -> Sequence[Expectation]:
    """The expectations that the cells of a study hold."""
    return [one for one, _ in held_expectations(records(study))]


@cache
def compared(study: str) -> Sequence[Compared]:
    """Every expectation on a study, beside what was measured."""
    return compare(expectations(study), study_tables(study))


def matching(study: str, where: Mapping[str, Any]) -> list[Compared]:
    """Those of :func:`compared` whose expectation has these fields. ``p``: that of its rule."""

    def matches(one: Expectation) -> bool:
        return all(_equal(getattr(one, name), value) for name, value in where.items())

    return [row for row in compared(study) if matches(row.expectation)]


def _equal(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, float | int) and isinstance(found, float | int):
        return abs(found - wanted) < 1e-9
    return bool(found == wanted)
