"""A grid is counted before it is made."""

import math

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from study.config.grid import MOST_CELLS, alternatives, check_count
from study.errors import StudyError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed=1,2", ["1", "2"]),
        ("seed=range(1,4)", ["1", "2", "3"]),
        ("seed=range(1,2,0.5)", ["1.0", "1.5"]),
        ("name='a b',c", ["'a b'", "c"]),
        ("seed=choice(3)", ["3"]),
    ],
)
def test_alternatives(text: str, expected: list[str]) -> None:
    assert alternatives(OverridesParser.create().parse_override(text)) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed=range(1,1000000000)", "seed=range(1,1000000000) has over 100000 values"),
        ("seed=shuffle(range(1,1000000000))", "has over 100000 values"),
        ("seed=sort(range(1,1000000000))", "has over 100000 values"),
        ("adapter.alpha=range(0,1,1e-12)", "has over 100000 values"),
        ("seed=range(4,1)", "seed=range(4,1) has no values to sweep over"),
    ],
)
def test_what_is_refused(text: str, says: str) -> None:
    with pytest.raises(StudyError) as error:
        alternatives(OverridesParser.create().parse_override(text))
    assert says in str(error.value)


def test_all_combinations_are_counted() -> None:
    axis = [str(n) for n in range(math.isqrt(MOST_CELLS))]
    check_count([axis, axis])
    with pytest.raises(StudyError, match=r"cells \(316 x 316 x 2\): give at most 100000"):
        check_count([axis, axis, ["a", "b"]])
