"""Power laws against the rank: points, lines, bands and exponents are those of the tables."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.analysis import fitted
from study.figures import Absent
from study.figures.activation_moments import activation_moments_vs_rank
from study.figures.model_laws import descent_vs_rank, grad_norm_vs_rank

VS_RANK = [grad_norm_vs_rank, descent_vs_rank, activation_moments_vs_rank]


def panels(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.findobj(Axes) if ax.get_visible()]


def on(ax: Axes, found: list) -> list:
    return [artist for artist in found if artist.axes is ax]


def row(tables: SimpleNamespace, scaling: str, **where: object) -> pd.Series:
    rows = tables.exponents[tables.exponents["scaling"] == scaling]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    (found,) = rows.to_dict("records")
    return pd.Series(found)


GRAD = {"site": "adapter_grad", "stat": "norm", "layer": "model"}


def test_gradient_norm_has_a_point_per_cell_at_the_first_and_last_step(full, read) -> None:
    figure = grad_norm_vs_rank(full)
    for ax, step in zip(panels(figure), (0, 50), strict=True):
        assert ax.get_legend().get_title().get_text() == f"step {step}"
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
        for scaling, p in (("lora", 1), ("rslora", 0.5)):
            (points,) = on(ax, read.artists(figure, f"points {scaling} p={p}"))
            rows = full.probes[
                (full.probes["site"] == "adapter_grad") & (full.probes["step"] == step)
            ]
            rows = rows.assign(cell_id=rows["cell_id"].astype(str)).merge(full.cells, on="cell_id")
            rows = rows[rows["scaling"] == scaling]
            drawn = sorted(zip(points.get_xdata(), points.get_ydata(), strict=True))
            np.testing.assert_allclose(
                drawn, sorted(zip(rows["rank"], rows["norm"], strict=True)), rtol=1e-6
            )
            assert len(drawn) == 30


def test_line_and_band_are_the_fits_and_the_legend_says_the_slope(full, read) -> None:
    figure = grad_norm_vs_rank(full)
    first, _ = panels(figure)
    fit = row(full, "lora", step=0, **GRAD)
    (line,) = on(first, read.artists(figure, "line lora"))
    (band,) = on(first, read.artists(figure, "band lora"))
    middle, low, high = fitted(fit, line.get_xdata())
    np.testing.assert_allclose(line.get_ydata(), middle)
    np.testing.assert_allclose(line.get_xdata()[[0, -1]], [4, 2048])
    edges = band.get_paths()[0].vertices
    np.testing.assert_allclose(sorted(set(edges[np.isclose(edges[:, 0], 4), 1])), [low[0], high[0]])
    label, other = (text.get_text() for text in first.get_legend().get_texts())
    digits = 3 if fit["ci_high"] - fit["ci_low"] < 0.02 else 2
    slope, lower, upper = (
        f"−{abs(fit[name]):.{digits}f}" for name in ("exponent", "ci_low", "ci_high")
    )
    assert label == f"LoRA  {slope} [{lower}, {upper}], theory −0.50"
    assert other.startswith("rsLoRA  0.00")
    assert other.endswith("theory 0.00")


def test_theory_is_a_dotted_line_through_the_fits_centre_where_there_is_one(full, read) -> None:
    figure = grad_norm_vs_rank(full)
    first, last = panels(figure)
    theories = read.artists(figure, "theory")
    assert len(on(first, theories)) == 2
    assert not on(last, theories)  # nothing is predicted after step 0
    (theory,) = on(first, read.artists(figure, "theory lora"))
    slopes = np.diff(np.log(theory.get_ydata())) / np.diff(np.log(theory.get_xdata()))
    np.testing.assert_allclose(slopes, -0.5)
    fit = row(full, "lora", step=0, **GRAD)
    at_centre = np.interp(
        fit["log_rank_mean"], np.log(theory.get_xdata()), np.log(theory.get_ydata())
    )
    np.testing.assert_allclose(at_centre, fit["log_stat_mean"])
    (line,) = on(first, read.artists(figure, "line lora"))
    assert theory.get_zorder() > line.get_zorder(), "dots upon the line, where both agree"


# activations


def test_activations_are_the_mean_over_layers_of_the_log(small, read) -> None:
    figure = activation_moments_vs_rank(small)
    rows = small.probes[(small.probes["site"] == "adapter_out") & (small.probes["step"] == 15)]
    rows = (
        rows.assign(cell_id=rows["cell_id"].astype(str))
        .merge(small.cells, on="cell_id")
        .query("scaling == 'lora'")
    )
    for ax, stat in zip(panels(figure), ("mean_abs", "rms", "m4"), strict=True):
        (points,) = on(ax, read.artists(figure, "points lora"))
        (bars,) = on(ax, read.artists(figure, "spread lora"))
        logs = np.log(rows.pivot(index="rank", columns="layer", values=stat).astype(float))
        np.testing.assert_allclose(points.get_ydata(), np.exp(logs.mean(axis=1)))
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(ends, np.exp(logs.quantile([0.05, 0.95], axis=1).T))
        (line,) = on(ax, read.artists(figure, "line lora"))
        fit = row(
            small, "lora", site="adapter_out", stat=stat, step=15, layer="mean_log", kind="all"
        )
        np.testing.assert_allclose(line.get_ydata(), fitted(fit, line.get_xdata())[0])
    assert "adapter output" in panels(figure)[0].get_ylabel()
    assert "at step 15" in panels(figure)[0].get_ylabel()
    headings = [ax.get_legend().get_title().get_text().split("  ")[0] for ax in panels(figure)]
    assert headings == ["mean absolute value", "root mean square", "fourth moment"]


def test_heldout_activations_are_named_as_such(tiny, read) -> None:
    tables = tiny(fitted=False)
    tables.probes = tables.probes.assign(batch="heldout")
    assert "held-out batch" in " ".join(read.texts(activation_moments_vs_rank(tables)))


# unusual studies


@pytest.mark.parametrize("draw", VS_RANK)
def test_without_data_the_reason_is_given(draw, tiny) -> None:
    tables = tiny()
    tables.probes = tables.probes.iloc[:0]
    with pytest.raises(Absent, match="in the tables"):
        draw(tables)
    tables.probes = tables.probes[
        ["cell_id", "step", "layer", "block", "kind", "site", "batch"]
    ]  # not one stat
    with pytest.raises(Absent, match="in the tables"):
        draw(tables)


@pytest.mark.parametrize("broken", ["diverged", "stuck"])
def test_broken_cells_are_crossed_at_their_rank(tiny, read, broken: str) -> None:
    gone = (1024, 1)
    tables = tiny(
        ranks=(4, 32, 256, 1024),
        status=lambda c: broken if (c["rank"], c["seed"]) == gone else "complete",
    )
    figure = grad_norm_vs_rank(tables)
    first, last = panels(figure)
    assert not on(first, read.artists(figure, "lost"))  # none had at step 0
    crosses = on(last, read.artists(figure, "lost"))
    assert [list(cross.get_xdata()) for cross in crosses] == [[1024], [1024]]
    assert len(on(last, read.artists(figure, "points lora"))[0].get_xdata()) == 7
    fitted = row(tables, "lora", step=6, **GRAD)
    assert fitted["points"] == 6  # both seeds, over the ranks that both have
    assert fitted["seeds"] == 2
    assert "had diverged or got stuck by then" in " ".join(read.texts(figure)).replace("\n", " ")


def test_settings_have_rows_fits_and_steps_of_their_own(tiny) -> None:
    settings = [{"optimizer": "adamw", "clip": None}, {"optimizer": "sgd", "clip": 1.0}]
    tables = tiny(settings=settings)
    sgd = set(tables.cells.query("optimizer == 'sgd'")["cell_id"])
    tables.probes = tables.probes[
        ~(tables.probes["cell_id"].isin(sgd) & (tables.probes["step"] == 6))
    ]
    figure = grad_norm_vs_rank(tables)
    assert [part._suptitle.get_text() for part in figure.subfigs] == [
        "AdamW",
        "SGD",
    ]
    for part, optimizer, last in zip(figure.subfigs, ("adamw", "sgd"), (6, 1), strict=True):
        panel = [ax for ax in part.findobj(Axes) if ax.get_visible()][-1]
        assert panel.get_legend().get_title().get_text() == f"step {last}"
        slope = row(tables, "lora", optimizer=optimizer, step=last, **GRAD)["exponent"]
        assert f"{abs(slope):.2f}" in panel.get_legend().get_texts()[0].get_text()
