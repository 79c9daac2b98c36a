"""Loss and gradient-norm curves show the tables, in the right panel, colour and range."""

from types import SimpleNamespace

import numpy as np

from study.figures.over_training import grad_norm_curves, loss_curves
from tests.figures.checklist import problems
from tests.figures.conftest import artists, only, panels, rows, said, tiny


def of_rank(tables, scaling, rank, column):
    """The metric as [step, seed], straight from the tables; NaN rows dropped."""
    cells = rows(tables.cells, scaling=scaling, rank=rank)["cell_id"]
    wide = tables.metrics[tables.metrics["cell_id"].isin(cells)]
    return wide.pivot(index="step", columns="cell_id", values=column).dropna().to_numpy()


def test_seeds_are_averaged_and_their_range_is_a_band(full):
    figure = loss_curves(full)
    top = panels(figure)[1]
    losses = of_rank(full, "rslora", 256, "loss")
    line = only(figure, "curve rslora p=0.5 r=256", top)
    band = only(figure, "band rslora p=0.5 r=256", top)
    np.testing.assert_allclose(line.get_ydata(), losses.mean(axis=1))
    at_20 = band.get_paths()[0].vertices
    at_20 = at_20[at_20[:, 0] == 20, 1]
    np.testing.assert_allclose([at_20.min(), at_20.max()], [losses[20].min(), losses[20].max()])
    assert "mean over 3 seeds; bands: their range." in said(figure)
    # At most six ranks are drawn, and the text says so.
    labels = {text.get_text() for text in top.texts}
    assert labels == {"4", "32", "256", "2048"}
    assert "Numbers at the lines: ranks (4 of 10 are drawn)." in said(figure)
    perplexity = only(figure, "curve lora p=1 r=32 complete", panels(figure)[2])
    np.testing.assert_array_equal(perplexity.get_xdata(), [0, 10, 20, 30, 40, 50])
    expected = np.exp(of_rank(full, "lora", 32, "eval_loss").mean(axis=1))
    np.testing.assert_allclose(perplexity.get_ydata(), expected)


def test_gradient_norms_of_every_step_are_on_one_logarithmic_axis(small):
    """Step 15 was probed after the last update; a loop that trains other weights has probes."""
    figure = grad_norm_curves(small)
    first, second = panels(figure)
    assert first.get_yscale() == second.get_yscale() == "log"
    assert first.get_ylim() == second.get_ylim()
    line = only(figure, "curve lora p=1 r=64 complete")
    cell = rows(small.cells, scaling="lora", rank=64)["cell_id"].iloc[0]
    probes = rows(small.probes, cell_id=cell, site="adapter_grad")
    np.testing.assert_array_equal(line.get_xdata(), np.arange(16))
    np.testing.assert_allclose(line.get_ydata()[probes["step"]], probes["norm"], rtol=1e-6)
    norms = of_rank(small, "lora", 64, "grad_norm")[:, 0]
    np.testing.assert_allclose(line.get_ydata()[:15], norms, rtol=1e-6)
    larger = small.metrics.assign(grad_norm=2 * small.metrics["grad_norm"])
    figure = grad_norm_curves(SimpleNamespace(**vars(small) | {"metrics": larger}))
    line = only(figure, "curve lora p=1 r=64 complete")
    np.testing.assert_array_equal(line.get_xdata(), probes["step"])


def test_both_readings_of_the_average_gradient_norm_are_drawn():
    """The second row is the mean over A and B of all layers, if it was measured."""
    tables = tiny()
    whole = (tables.probes["layer"] == "model") & (tables.probes["site"] == "adapter_grad")
    tables.probes["mean_norm"] = (tables.probes["norm"] / 7).where(whole)
    figure = grad_norm_curves(tables)
    above, _, below, _ = panels(figure)
    curves = artists(figure, "curve rslora p=0.5 r=32 complete")
    upper, lower = (dict(zip(*curve.get_data(), strict=True)) for curve in curves)
    assert list(lower) == [0, 1, 6]
    np.testing.assert_allclose([upper[step] / 7 for step in lower], [*lower.values()], rtol=1e-6)
    assert above.get_ylabel().startswith("gradient norm")
    assert below.get_ylabel().startswith("mean gradient norm")
    assert problems(figure) == []


def test_a_diverged_cell_ends_in_a_cross_at_its_last_finite_value():
    gone = (256, 0)
    tables = tiny(
        steps=20, status=lambda c: "diverged" if (c["rank"], c["seed"]) == gone else "complete"
    )
    figure = loss_curves(tables)
    top = panels(figure)[0]
    cross, line = only(figure, "cross lora", top), only(figure, "curve lora p=1 r=256 diverged")
    # The step at which it diverged: later steps have frozen weights.
    assert cross.get_xdata()[-1] == line.get_xdata()[-1] == 10
    assert line.get_ydata()[-1] == 40.0
    # At the edge, far above the other curves.
    assert 3.5 < cross.get_ydata()[0] <= top.get_ylim()[1] < 6
    survivor = only(figure, "curve lora p=1 r=256 complete", top)
    alive = rows(tables.cells, scaling="lora", rank=256, seed=1)["cell_id"].iloc[0]
    losses = rows(tables.metrics, cell_id=alive)["loss"].dropna()
    np.testing.assert_allclose(survivor.get_ydata(), losses)  # the mean of the complete cells
    assert "diverged" in said(figure)
