"""Some of each kind of fault. ``make faults`` has many, on every sweep."""

import pytest

from .faults import Sweep, failing_cases, power_cases
from .power import LEAST


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def short(place):
    """A sweep that makes every kind of file call, and few of them."""
    return Sweep("short", place)


def test_every_file_of_a_study_is_written_through_the_store(short):
    """Otherwise no fault could be put there."""
    written = {call["path"] for call in short.calls if call["operation"] in ("open", "replace")}
    found = {str(path) for path in short.undisturbed.rglob("*") if path.is_file()}
    inside = {path for path in found if any(path.startswith(f"{w}/") for w in written)}
    assert found - inside - written == set()


def test_a_killed_sweep_ends_with_the_tables_of_an_undisturbed_one(place):
    assert Sweep("adapters", place).kill(0).wrong == []


def test_a_call_that_fails_gives_one_line_and_loses_nothing(short):
    for case in failing_cases(short, 1000, seed=0)[: len(short.kinds()) : 12]:
        assert short.fail(*case).wrong == []


def test_power_loss_costs_no_row_of_a_checkpoint_and_no_record(short):
    """At one call; the disk has kept only what was synced."""
    [(at, _)] = power_cases(short, 1, seed=0)
    assert short.lose_power(at, LEAST).wrong == []
