"""Loss and gradient-norm curves show the tables, in the right panel, colour and range."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from scipy.signal import savgol_filter

from study.figures import Absent, style
from study.figures.over_training import grad_norm_curves, loss_curves
from study.figures.selection import Rule

LORA, RSLORA = Rule.of("lora", None), Rule.of("rslora", None)


def panels(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.findobj(Axes) if ax.get_label() != "legend" and ax.get_visible()]


def of_rank(
    tables: SimpleNamespace, scaling: str, rank: float, column: str, cells: object = None
) -> np.ndarray:
    """The metric as [step, seed], straight from the tables; NaN rows dropped."""
    chosen = tables.cells[(tables.cells["scaling"] == scaling) & (tables.cells["rank"] == rank)]
    wide = tables.metrics[tables.metrics["cell_id"].isin(chosen["cell_id"])]
    return wide.pivot(index="step", columns="cell_id", values=column).dropna().to_numpy()


def test_loss_has_a_line_per_rank_that_is_the_tables_numbers(small, read) -> None:
    figure = loss_curves(small)
    top = panels(figure)[0]
    for rank in (4, 16, 64, 256, 1024):
        (line,) = [
            a for a in read.artists(figure, f"curve lora p=1 r={rank} complete") if a.axes is top
        ]
        np.testing.assert_array_equal(line.get_xdata(), np.arange(15))
        np.testing.assert_allclose(line.get_ydata(), of_rank(small, "lora", rank, "loss")[:, 0])
        assert same_color(line.get_color(), style.shade(LORA, rank, [4, 16, 64, 256, 1024]))
    assert len(read.artists(figure, "curve")) == 2 * 5  # rules, ranks
    assert not read.artists(figure, "band")  # one seed
    assert not read.artists(figure, "raw")  # 15 steps: nothing smoothed


def test_perplexity_is_the_exponential_of_the_heldout_loss(full, read) -> None:
    figure = loss_curves(full)
    bottom = panels(figure)[2]
    (line,) = [a for a in read.artists(figure, "curve lora p=1 r=32 complete") if a.axes is bottom]
    expected = np.exp(of_rank(full, "lora", 32, "eval_loss").mean(axis=1))
    np.testing.assert_array_equal(line.get_xdata(), [0, 10, 20, 30, 40, 50])
    np.testing.assert_allclose(line.get_ydata(), expected)


def test_many_steps_are_smoothed_seeds_averaged_and_the_raw_mean_kept(full, read) -> None:
    figure = loss_curves(full)
    losses = of_rank(full, "rslora", 256, "loss")
    smooth = savgol_filter(losses, 5, 1, axis=0)
    line, _ = read.artists(figure, "curve rslora p=0.5 r=256 complete")
    (raw,) = read.artists(figure, "raw rslora p=0.5 r=256")  # the area between both
    band, _ = read.artists(figure, "band rslora p=0.5 r=256")
    np.testing.assert_allclose(line.get_ydata(), smooth.mean(axis=1))
    corners = {(x, round(y, 9)) for x, y in raw.get_paths()[0].vertices}
    assert {(x, round(y, 9)) for x, y in enumerate(losses.mean(axis=1))} <= corners
    at_20 = band.get_paths()[0].vertices
    at_20 = at_20[at_20[:, 0] == 20, 1]
    np.testing.assert_allclose([at_20.min(), at_20.max()], [smooth[20].min(), smooth[20].max()])
    said = " ".join(read.texts(figure)).replace("\n", " ")
    assert "mean over 3 seeds; bands: their range." in said
    assert "Smoothed over 5 steps" in said


def labels(ax: Axes) -> dict[str, str]:
    """The colours of the labels at the lines of a panel, by their text."""
    return {text.get_text(): text.get_color() for text in ax.texts}


def test_at_most_six_ranks_are_drawn_and_the_text_says_so(full, small, read) -> None:
    figure = loss_curves(full)
    assert list(labels(panels(figure)[0])) == ["4", "32", "256", "2048"]
    assert "ranks (4 of 10 are drawn)." in " ".join(read.texts(figure))
    assert "Numbers at the lines: ranks." in " ".join(read.texts(loss_curves(small)))


# gradient norms


def test_gradient_norms_come_from_the_probes_on_a_log_axis(small, read) -> None:
    figure = grad_norm_curves(small)
    assert [ax.get_yscale() for ax in panels(figure)] == ["log", "log"]
    (line,) = read.artists(figure, "curve lora p=1 r=64 complete")
    np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2, 4, 8, 15])
    cell = small.cells.query("scaling == 'lora' and rank == 64")["cell_id"].iloc[0]
    rows = small.probes[
        (small.probes["cell_id"] == cell) & (small.probes["site"] == "adapter_grad")
    ]
    np.testing.assert_allclose(line.get_ydata(), rows["norm"], rtol=1e-6)
    assert panels(figure)[0].get_ylim() == panels(figure)[1].get_ylim()
    assert "gradient norm" in panels(figure)[0].get_ylabel()


def test_both_readings_of_the_average_gradient_norm_are_drawn(tiny, read) -> None:
    """The second row is the mean over A and B of all layers, if it was measured."""
    tables = tiny()
    whole = (tables.probes["layer"] == "model") & (tables.probes["site"] == "adapter_grad")
    tables.probes["mean_norm"] = (tables.probes["norm"] / 7).where(whole)
    figure = grad_norm_curves(tables)
    above, _, below, _ = panels(figure)
    curves = read.artists(figure, "curve rslora p=0.5 r=32 complete")
    upper, lower = (curve.get_ydata() for curve in curves)
    np.testing.assert_allclose(lower, upper / 7, rtol=1e-6)
    assert above.get_ylabel().startswith("gradient norm")
    assert below.get_ylabel().startswith("mean gradient norm")
    assert read.problems(figure) == []


# diverged and running cells


def test_a_diverged_cell_ends_in_a_cross_at_its_last_finite_value(tiny, read) -> None:
    tables = tiny(
        steps=20, status=lambda c: "diverged" if (c["rank"], c["seed"]) == (256, 0) else "complete"
    )
    figure = loss_curves(tables)
    top = panels(figure)[0]
    (cross,) = [a for a in read.artists(figure, "cross lora") if a.axes is top]
    (line,) = read.artists(figure, "curve lora p=1 r=256 diverged")
    assert list(cross.get_xdata()) == [
        10
    ]  # the step at which it diverged; later steps have frozen weights
    assert line.get_xdata()[-1] == 10
    assert line.get_ydata()[-1] == 40.0
    assert (
        3.5 < cross.get_ydata()[0] < top.get_ylim()[1]
    )  # near the edge, far above the other curves
    (survivor,) = [
        a for a in read.artists(figure, "curve lora p=1 r=256 complete") if a.axes is top
    ]
    alive = tables.cells.query("scaling == 'lora' and rank == 256 and seed == 1")["cell_id"].iloc[0]
    losses = tables.metrics[tables.metrics["cell_id"] == alive]["loss"].dropna()
    np.testing.assert_allclose(
        survivor.get_ydata(), losses
    )  # the mean is over the complete cells alone
    assert top.get_ylim()[1] < 6
    assert "diverged" in " ".join(read.texts(figure))

    norms = grad_norm_curves(tables)
    (cross,) = read.artists(norms, "cross rslora")
    (line,) = read.artists(norms, "curve rslora p=0.5 r=256 diverged")
    assert cross.get_ydata()[0] == line.get_ydata()[-1]


# unusual studies


@pytest.mark.parametrize("draw", [loss_curves, grad_norm_curves])
def test_without_data_the_reason_is_given(draw, tiny) -> None:
    tables = tiny()
    tables.metrics, tables.probes = tables.metrics.iloc[:0], tables.probes.iloc[:0]
    with pytest.raises(Absent, match="in the tables"):
        draw(tables)
    tables.cells = tables.cells.iloc[:0]
    with pytest.raises(Absent, match="in the tables"):
        draw(tables)
