"""Figures of the plane of alpha and learning rate, on a known surface."""

from types import SimpleNamespace

import pytest

from study.figures import Absent
from study.figures.plane import alpha_plane, best_pairs_by_rank
from tests.analysis import test_plane as surface


def study(**axes):
    """Four ranks, alphas and two seeds, whose best pair is known."""
    cells, metrics, probes = surface.study(**axes)
    return SimpleNamespace(cells=cells, metrics=metrics, probes=probes)


def test_a_star_at_the_best_pair_of_each_rank():
    figure = alpha_plane(study())
    panels = [ax for ax in figure.axes if ax.get_title().startswith("rank ")]
    assert [ax.get_title() for ax in panels] == ["rank 4", "rank 16", "rank 64", "rank 256"]
    for ax in panels:
        [star] = [line for line in ax.lines if line.get_gid() == "best pair"]
        assert star.get_xdata()[0] == pytest.approx(surface.BEST_ALPHA * 1.5**0.5)
        assert star.get_ydata()[0] == pytest.approx(surface.BEST_RATE)
        ways = {line.get_gid(): line.get_xdata()[0] for line in ax.lines}
        rank = float(ax.get_title().removeprefix("rank "))
        assert ways["rsLoRA"] == pytest.approx(16 * rank**0.5)
        assert ways["twice the rank"] == 2 * rank


def test_two_alphas_are_no_plane():
    with pytest.raises(Absent, match="three alphas"):
        best_pairs_by_rank(study(alphas=(16.0, 64.0)))
