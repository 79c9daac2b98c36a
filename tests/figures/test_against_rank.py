"""Figures against the rank: points, lines, bands and exponents are those of the tables."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from study.analysis import fit_exponents, fitted, with_predictions
from study.figures import Absent
from study.figures.against_rank import activation_moments_vs_rank, conditions, grad_norm_vs_rank
from study.figures.laws import RankLaw
from study.figures.selection import DrawnRule
from study.theory import slope
from tests.analysis.conftest import RANKS, study_of
from tests.analysis.test_predictions_and_stable import LAWS, metrics_of, recorded, sgd_out
from tests.figures.conftest import artists, only, panels, row, rows, said, tiny

GRAD = {"site": "adapter_grad", "stat": "norm", "layer": "model"}
RULES = {"lora": 1.0, "rslora": 0.5}


def test_a_line_that_misses_the_points_of_a_rank_is_dashed_and_bent(full):
    """A fit of points on a line has a band; then the points of one rank move."""
    fit = row(full.exponents, scaling="lora", step=0, **GRAD)
    ranks = np.array([4.0, 32.0, 256.0, 2048.0])
    middle, _, high = fitted(fit, ranks)
    law = RankLaw(DrawnRule.of("lora", None), ranks, middle, ranks[:0], fit)
    moved = dataclasses.replace(law, value=np.where(ranks == 32, 1.3 * high, middle))
    assert (law.is_missed, moved.is_missed) == (False, True)


def test_lines_and_bands_are_the_fits_and_theory_is_dotted_through_their_centre(full):
    """A point for each cell, at the first and the last step."""
    figure = grad_norm_vs_rank(full)
    first, last = panels(figure)
    probes = full.probes.astype({"cell_id": str}).merge(full.cells, on="cell_id")
    for ax, step in ((first, 0), (last, 50)):
        assert ax.get_legend().get_title().get_text() == f"step {step}"
        for scaling in RULES:
            points = only(figure, f"points {scaling}", ax)
            here = rows(probes, site="adapter_grad", step=step, scaling=scaling)
            expected = sorted(zip(here["rank"], here["norm"], strict=True))
            np.testing.assert_allclose(sorted(map(tuple, points.get_xydata())), expected, rtol=1e-6)
    fit = row(full.exponents, scaling="lora", step=0, **GRAD)
    line, band, theory = (
        only(figure, f"{part} lora", first) for part in ("line", "band", "theory")
    )
    middle, low, high = fitted(fit, line.get_xdata())
    np.testing.assert_allclose(line.get_ydata(), middle)
    np.testing.assert_allclose(line.get_xdata()[[0, -1]], [4, 2048])
    edges = band.get_paths()[0].vertices
    np.testing.assert_allclose(sorted(set(edges[np.isclose(edges[:, 0], 4), 1])), [low[0], high[0]])
    fits = rows(full.exponents, step=0, **GRAD)
    digits = 3 if (fits["ci_high"] - fits["ci_low"] < 0.02).all() else 2
    value, *ends = (f"−{abs(fit[n]):.{digits}f}" for n in ("exponent", "ci_low", "ci_high"))
    label, other = (text.get_text() for text in first.get_legend().get_texts())
    assert label == f"LoRA  {value} [{', '.join(ends)}], theory −{0.5:.{digits}f}"
    assert other.startswith("rsLoRA  0.00")

    x, y = np.log(theory.get_xdata()), np.log(theory.get_ydata())
    np.testing.assert_allclose(np.diff(y) / np.diff(x), -0.5)
    np.testing.assert_allclose(np.interp(fit["log_rank_mean"], x, y), fit["log_stat_mean"])
    assert theory.get_zorder() > line.get_zorder(), "dots upon the line, where both agree"
    assert not artists(figure, "theory", last)  # nothing is predicted after step 0


def test_activations_are_the_mean_over_layers_of_the_log(small):
    figure = activation_moments_vs_rank(small)
    probes = small.probes.astype({"cell_id": str}).merge(small.cells, on="cell_id")
    where = {"site": "adapter_out", "step": 15, "scaling": "lora"}
    for ax, stat in zip(panels(figure), ("mean_abs", "rms", "m4"), strict=True):
        here = rows(probes, **where)
        logs = np.log(here.pivot(index="rank", columns="layer", values=stat).astype(float))
        points, bars = only(figure, "points lora", ax), only(figure, "spread lora", ax)
        np.testing.assert_allclose(points.get_ydata(), np.exp(logs.mean(axis=1)))
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(ends, np.exp(logs.quantile([0.05, 0.95], axis=1).T))
        line = only(figure, "line lora", ax)
        fit = row(small.exponents, **where, stat=stat, layer="mean_log", kind="all")
        np.testing.assert_allclose(line.get_ydata(), fitted(fit, line.get_xdata())[0])
    assert "at step 15" in panels(figure)[0].get_ylabel()


@pytest.mark.parametrize("broken", ["diverged", "stuck"])
def test_broken_cells_are_crossed_at_their_rank(broken):
    gone = (1024, 1)
    tables = tiny(
        ranks=(4, 32, 256, 1024),
        status=lambda c: broken if (c["rank"], c["seed"]) == gone else "complete",
    )
    figure = grad_norm_vs_rank(tables)
    first, last = panels(figure)
    assert not artists(figure, "lost", first)  # none had at step 0
    assert [list(cross.get_xdata()) for cross in artists(figure, "lost", last)] == [[1024]] * 2
    assert len(only(figure, "points lora", last).get_xdata()) == 7
    assert "had diverged or got stuck by then" in said(figure)


def lazy():
    """A study under SGD on the predicted curves, with the gradients into the inputs."""
    laws = LAWS | {("adapter_in_grad", "rms"): sgd_out}
    cells, probes = study_of(laws, steps=(0, 1), scaling=tuple(RULES))
    probes, metrics = recorded(probes), metrics_of(cells)
    fits = with_predictions(fit_exponents(cells, probes), cells, metrics, probes)
    return SimpleNamespace(cells=cells, metrics=metrics, probes=probes, exponents=fits)


def test_conditions_show_means_over_layers_and_curves_with_the_slope_of_the_table():
    tables = lazy()
    figure = conditions(tables)
    probes = tables.probes.astype({"cell_id": str}).merge(tables.cells, on="cell_id")
    for ax, site in zip(figure.axes, ("adapter_out", "adapter_in_grad"), strict=True):
        where = {"site": site, "step": 1, "scaling": "lora"}
        here = rows(probes, **where)
        means = np.exp(np.log(here["rms"]).groupby([here["rank"], here["seed"]]).mean())
        points = only(figure, "points lora", ax)
        np.testing.assert_allclose(np.sort(points.get_ydata()), np.sort(means))
        assert set(points.get_xdata()) == set(here["rank"])
        line = only(figure, "curve lora", ax)
        at = np.interp(np.log(RANKS), np.log(line.get_xdata()), np.log(line.get_ydata()))
        predicted = row(tables.exponents, layer="mean_log", kind="all", **where)["predicted"]
        assert slope(np.exp(at), RANKS) == pytest.approx(predicted, abs=1e-6), site
    tables.probes = tables.probes[tables.probes["site"] != "adapter_in_grad"]
    with pytest.raises(Absent, match="both adapter_out and adapter_in_grad"):
        conditions(tables)
