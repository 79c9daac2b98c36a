"""Labels at the lines, ticks of short axes, and line breaks around formulas."""

import numpy as np
import pytest

from study.figures import style
from study.figures.captions import wrapped
from study.figures.style import LogTicks, labels_of, spread

DOUBLING = [4.0 * 2**k for k in range(12)]


@pytest.mark.parametrize(
    ("number", "drawn"),
    [(6, [0, 1, 2, 3, 4, 5]), (7, [0, 2, 4, 6]), (9, [0, 2, 4, 6, 8]), (10, [0, 3, 6, 9])],
)
def test_at_most_six_ranks_at_even_distances(number: int, drawn: list[int]) -> None:
    assert style.ranks_to_draw(DOUBLING[:number]) == [DOUBLING[place] for place in drawn]


def test_labels_are_spread_as_little_as_possible() -> None:
    apart = spread(np.array([1.0, 5.0, 9.0]), 2, 0, 10)
    np.testing.assert_allclose(apart, [1, 5, 9])
    np.testing.assert_allclose(spread(np.array([5.0, 5.0, 5.0]), 2, 0, 10), [3, 5, 7])
    np.testing.assert_allclose(spread(np.array([0.0, 0.0, 9.0]), 2, 0, 10), [0, 2, 9])
    np.testing.assert_allclose(spread(np.array([9.0, 10.0]), 2, 0, 10), [8, 10])


def test_labels_stand_beside_the_lines_within_the_panel() -> None:
    with style.paper():
        page = style.figure(1, 1, column=style.HALF, ratio=0.6)
        ax = page.subplots()
        for rank in (4, 16, 64):
            ax.plot([0, 10], [0, 1], color="black")
            style.label_end(ax, 10, 1, str(rank), "black")
        style.finish(page)
    assert ax.get_xlim()[1] > 10
    assert ax.spines["bottom"].get_bounds()[1] == 10
    places = [text.xyann for text in labels_of(ax)]
    end = ax.transAxes.inverted().transform(ax.transData.transform((10, 1)))[0]
    assert all(end < x < 1 and 0 < y < 1 for x, y in places)
    assert len({y for _, y in places}) == 3


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.5, 2000, [1, 10, 100, 1000]),
        (0.2, 6, [0.3, 1, 3]),
        (0.9, 5.5, [1, 2, 5]),
        (0.95, 3.5, [1, 2, 3]),
        (2.0, 2.6, [2.0, 2.2, 2.4, 2.6]),
    ],
)
def test_a_logarithmic_axis_of_any_length_has_three_ticks(
    low: float, high: float, ticks: list[float]
) -> None:
    found = LogTicks().tick_values(low, high)
    assert list(found) == pytest.approx(ticks)


def test_a_line_is_never_broken_within_a_formula() -> None:
    text = "Dashed: theory ($D - 0.2$ for a uniform $A$), of $x$."
    for width in range(8, 40):
        lines = wrapped(text, width).split("\n")
        assert " ".join(lines) == text
        assert all(line.count("$") % 2 == 0 for line in lines)
