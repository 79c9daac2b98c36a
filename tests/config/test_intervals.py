"""Intervals in steps and in time, and the configuration of checkpoints."""

from collections.abc import Callable

import pytest

from study.config import CellConfig, Interval, Sources, identity, interval
from study.errors import StudyError

Build = Callable[..., CellConfig]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("60s", Interval(seconds=60)),
        ("10m", Interval(seconds=600)),
        ("1.5h", Interval(seconds=5400)),
        (7, Interval(steps=7)),
    ],
)
def test_steps_and_times(text: object, expected: Interval) -> None:
    assert interval("checkpoint.every", text) == expected


@pytest.mark.parametrize(
    "value", [0, -1, True, 1.5, "0s", "60", "s", "-1s", "1d", "1e9s", "٣s", "9" * 400 + "s", []]
)
def test_anything_else_is_refused_in_one_line(value: object) -> None:
    with pytest.raises(StudyError, match=r"^checkpoint.every=.* is no interval: give .*null$"):
        interval("checkpoint.every", value)


def test_checkpoints_are_no_part_of_the_identity(cell: Build) -> None:
    sources = Sources("m", "t", "d")
    cells = [cell(*o) for o in ([], ["checkpoint.every=5"], ["checkpoint.every=null"])]
    assert [c.checkpoint.every for c in cells] == ["60s", 5, None]
    assert len({identity(config, sources) for config in cells}) == 1
    with pytest.raises(StudyError, match=r"checkpoint\.every=0 is no interval"):
        cell("checkpoint.every=0")
