"""File calls that fail, and power that is lost, in a short sweep."""

import pytest

from .calls import ERRORS, ROWS, Calls
from .power import LEAST, NAMES_ONLY


def test_every_file_of_a_study_is_written_through_the_store(calls: Calls) -> None:
    """Otherwise no fault could be put there."""
    study = calls.undisturbed
    written = {point.path for point in calls.points if point.operation in ("open", "replace")}
    folder = study.parents[1]
    found = {str(p.relative_to(folder)) for p in study.rglob("*") if p.is_file()}
    inside = {path for path in found if any(path.startswith(f"{w}/") for w in written)}
    assert found - inside - written == set()


@pytest.mark.parametrize("share", range(4))
def test_a_call_that_fails_gives_one_line_and_loses_nothing(calls: Calls, share: int) -> None:
    """Some kinds of calls, each with one of the errors. ``make faults``: all of all."""
    points = calls.first_of_each_kind()[3 * share :: 12]
    for number, point in enumerate(points):
        error = ERRORS[(share + number) % len(ERRORS)]
        found = calls.failing(point, error, for_good=(share + number) % 3 == 0)
        assert found.wrong == []


@pytest.mark.parametrize("seed", [LEAST, NAMES_ONLY, 2, 3])
def test_power_loss_costs_no_row_of_a_checkpoint_and_no_record(calls: Calls, seed: int) -> None:
    last = len(calls.points) + ROWS
    for at in range(30 + 13 * seed, last + 1, last // 3):
        found = calls.losing_power(at, seed)
        assert found.wrong == []
