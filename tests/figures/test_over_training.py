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


EVALUATED = (0, 3, 6)


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


def test_rules_share_an_axis_and_are_headed_in_their_colour(full) -> None:
    figure = loss_curves(full)
    lora, rslora, below, _ = panels(figure)
    assert lora.get_ylim() == rslora.get_ylim()
    assert lora.get_ylabel() == "training loss\n(nats per token)"
    assert below.get_ylabel() == "held-out\nperplexity"
    assert [ax.get_xlabel() for ax in panels(figure)] == [
        "",
        "",
        "optimizer step",
        "optimizer step",
    ]
    assert lora.get_title().startswith("LoRA")
    assert rslora.get_title().startswith("rsLoRA")
    assert same_color(rslora.title.get_color(), style.tint(RSLORA, [RSLORA]))


def labels(ax: Axes) -> dict[str, str]:
    """The colours of the labels at the lines of a panel, by their text."""
    return {text.get_text(): text.get_color() for text in ax.texts}


def test_lines_are_labelled_with_their_ranks_in_their_colours(small) -> None:
    lora, rslora = panels(grad_norm_curves(small))
    ranks = [4, 16, 64, 256, 1024]
    for ax, rule in ((lora, LORA), (rslora, RSLORA)):
        assert list(labels(ax)) == [str(rank) for rank in ranks]
        for rank in ranks:
            assert same_color(labels(ax)[str(rank)], style.shade(rule, rank, ranks))
    assert lora.texts[0].xyann[1] > lora.texts[-1].xyann[1], "LoRA's norm falls with the rank"
    assert lora.get_xlim()[1] > 15 == lora.spines["bottom"].get_bounds()[1]


def test_at_most_six_ranks_are_drawn_and_the_text_says_so(full, small, read) -> None:
    figure = loss_curves(full)
    assert list(labels(panels(figure)[0])) == ["4", "32", "256", "2048"]
    assert "ranks (4 of 10 are drawn)." in " ".join(read.texts(figure))
    assert "Numbers at the lines: ranks." in " ".join(read.texts(loss_curves(small)))


def test_a_broken_run_is_drawn_at_every_rank(tiny, read) -> None:
    ranks = tuple(4 * 2**k for k in range(10))
    figure = loss_curves(
        tiny(ranks=ranks, steps=20, status=lambda c: "diverged" if c["rank"] == 8 else "complete")
    )
    assert read.artists(figure, "cross lora p=1 r=8")
    assert not read.artists(figure, "curve lora p=1 r=16")


def test_other_rules_are_grey_behind(small, read) -> None:
    lora, rslora = panels(grad_norm_curves(small))
    figure = lora.figure
    grey = [a for a in read.artists(figure, "other rslora") if a.axes is lora]
    own = [a for a in read.artists(figure, "curve rslora") if a.axes is rslora]
    assert len(grey) == 2  # the lowest and the highest rank
    np.testing.assert_array_equal(grey[0].get_ydata(), own[0].get_ydata())
    assert same_color(grey[0].get_color(), style.CONTEXT)


def test_a_study_without_evaluation_has_losses_only(tiny) -> None:
    assert len(panels(loss_curves(tiny(evaluated=[])))) == 2


def test_two_evaluations_are_no_course(tiny) -> None:
    assert len(panels(loss_curves(tiny(evaluated=(0, 6))))) == 2
    assert len(panels(loss_curves(tiny(evaluated=EVALUATED)))) == 4


def test_a_rank_that_a_rule_lacks_has_no_label(tiny) -> None:
    tables = tiny()
    gone = (tables.cells["scaling"] == "rslora") & (tables.cells["rank"] == 256)
    tables.cells = tables.cells[~gone]
    assert [list(labels(ax)) for ax in panels(loss_curves(tables))] == [
        ["4", "32", "256"],
        ["4", "32"],
    ]


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


def test_seeds_are_averaged_geometrically(tiny, read) -> None:
    tables = tiny()
    tables.probes = tables.probes.iloc[:0]
    figure = grad_norm_curves(tables)
    (line,) = read.artists(figure, "curve rslora p=0.5 r=32 complete")
    norms = of_rank(tables, "rslora", 32, "grad_norm")
    np.testing.assert_allclose(line.get_ydata(), np.sqrt(norms[:, 0] * norms[:, 1]))
    assert "geometric mean over 2 seeds" in " ".join(read.texts(figure))


def test_the_norms_of_every_step_are_used_where_a_cell_has_no_probes(tiny, read) -> None:
    tables = tiny()
    tables.probes = tables.probes[tables.probes["cell_id"] != "cell0000"]
    (line,) = read.artists(grad_norm_curves(tables), "curve lora p=1 r=4 complete")
    np.testing.assert_array_equal(line.get_xdata(), np.arange(6))


def test_log_spaced_probes_get_a_log_step_axis(tiny) -> None:
    tables = tiny(steps=512, probed=(0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512))
    assert panels(grad_norm_curves(tables))[0].get_xscale() == "symlog"
    assert panels(loss_curves(tables))[0].get_xscale() == "linear"


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


def test_a_run_that_broke_before_its_second_value_leaves_a_cross(tiny, read) -> None:
    """Evaluated before training, then diverged: without a mark its rank would just be absent."""
    tables = tiny(
        steps=20,
        evaluated=(0, 15, 20),
        status=lambda c: "diverged" if (c["rank"], c["seed"]) == (256, 0) else "complete",
    )
    figure = loss_curves(tables)
    below = panels(figure)[2]
    (cross,) = [a for a in read.artists(figure, "cross lora p=1 r=256") if a.axes is below]
    assert list(cross.get_xdata()) == [10]
    low, high = below.get_ylim()
    assert low < cross.get_ydata()[0] < high
    complete = [a.get_ydata() for a in read.artists(figure, "curve") if a.axes is below]
    assert cross.get_ydata()[0] >= np.concatenate(complete).max()

    first_step = tables.metrics["step"] > 0
    of_cell = tables.metrics["cell_id"] == tables.cells["cell_id"].iloc[4]
    assert tables.cells["status"].iloc[4] == "diverged"
    tables.cells.loc[tables.cells.index[4], "diverged_step"] = 0.0
    tables.metrics = tables.metrics[~(of_cell & first_step)]
    tables.metrics.loc[of_cell, ["loss", "grad_norm", "eval_loss"]] = np.nan
    for draw in (loss_curves, grad_norm_curves):
        for cross in read.artists(draw(tables), "cross lora p=1 r=256"):
            assert list(cross.get_xdata()) == [0], "it has no value at all"


def test_a_stuck_run_ends_where_it_got_stuck(tiny, read) -> None:
    """The flat line after it would look like a run that has converged."""
    tables = tiny(
        steps=20, status=lambda c: "stuck" if (c["rank"], c["seed"]) == (256, 0) else "complete"
    )
    figure = loss_curves(tables)
    top = panels(figure)[0]
    (line,) = [a for a in read.artists(figure, "curve lora p=1 r=256 stuck") if a.axes is top]
    (cross,) = [a for a in read.artists(figure, "cross lora p=1 r=256 stuck") if a.axes is top]
    assert line.get_xdata()[-1] == cross.get_xdata()[0] == 10
    assert line.get_ydata()[-1] == cross.get_ydata()[0] == 2.9
    said = " ".join(read.texts(figure)).replace("\n", " ")
    assert "ending in ×: stuck runs" in said
    assert "A stuck run has no gradient from there on." in said
    (line,) = read.artists(grad_norm_curves(tables), "curve lora p=1 r=256 stuck")
    assert line.get_xdata()[-1] < 10, "no value of 0 on a log axis"


def test_a_running_cell_is_thin_and_not_averaged(tiny, read) -> None:
    tables = tiny(
        steps=20, status=lambda c: "running" if (c["rank"], c["seed"]) == (4, 1) else "complete"
    )
    figure = loss_curves(tables)
    (thin,) = read.artists(figure, "curve lora p=1 r=4 running")
    thick = read.artists(figure, "curve lora p=1 r=4 complete")[0]
    assert len(thin.get_xdata()) == 10
    assert thin.get_linewidth() < thick.get_linewidth()
    assert not read.artists(figure, "cross")
    assert "have not finished" in " ".join(read.texts(figure)).replace("\n", " ")


def test_a_study_that_all_diverged_is_still_drawn(tiny, read) -> None:
    figure = loss_curves(tiny(steps=20, status=lambda c: "diverged"))
    assert len(read.artists(figure, "cross")) == 12


def test_the_text_says_if_curves_hide_one_another(small, read) -> None:
    sentence = "the lines of all ranks coincide"
    assert sentence not in " ".join(read.texts(loss_curves(small)))
    tables = SimpleNamespace(**vars(small))
    lora = small.metrics["cell_id"].isin(small.cells.query("scaling == 'lora'")["cell_id"])
    alike = small.metrics.groupby("step")["loss"].transform("mean")
    tables.metrics = small.metrics.assign(loss=small.metrics["loss"].mask(lora, alike))
    assert sentence in " ".join(read.texts(loss_curves(tables))).replace("\n", " ")


# unusual studies


def test_one_rule_takes_half_a_page(tiny) -> None:
    figure = loss_curves(tiny(rules=[("rslora", np.nan)], evaluated=EVALUATED))
    assert figure.get_figwidth() == 3.25
    assert len(panels(figure)) == 2


def test_every_exponent_of_power_has_a_panel(tiny, read) -> None:
    figure = grad_norm_curves(tiny(rules=[("power", p) for p in (0.0, 0.25, 0.5)]))
    assert [ax.get_title().split("$")[1] for ax in panels(figure)] == [
        rf"\gamma = \alpha\, r^{{{p}}}" for p in ("0", "-1/4", "-1/2")
    ]
    assert len(read.artists(figure, "curve power p=0.25")) == 3


def test_the_text_says_if_rules_are_left_out(tiny, read) -> None:
    figure = grad_norm_curves(tiny(rules=[("power", p) for p in np.linspace(0, 1, 9)]))
    assert len(panels(figure)) == 5
    assert "5 of 9 rules are drawn" in " ".join(read.texts(figure))
    figure = grad_norm_curves(tiny(rules=[("power", p) for p in np.linspace(0, 1, 6)]))
    assert "Not drawn: power p = 1." in " ".join(read.texts(figure))


def test_infinite_rank_is_dashed_and_labelled(tiny, read) -> None:
    figure = loss_curves(tiny(ranks=(4, 64, np.inf)))
    assert {a.get_linestyle() for a in read.artists(figure, "curve lora p=1 r=∞")} == {"--"}
    assert {a.get_linestyle() for a in read.artists(figure, "curve lora p=1 r=64")} == {"-"}
    assert list(labels(panels(figure)[0])) == ["4", "64", "∞"]


def test_optimizers_are_never_mixed(tiny, read) -> None:
    tables = tiny(settings=[{"optimizer": "adamw"}, {"optimizer": "sgd"}])
    figure = grad_norm_curves(tables)
    assert [part._suptitle.get_text() for part in figure.subfigs] == ["AdamW", "SGD"]
    adamw, sgd = (
        [a.get_ydata() for a in part.findobj(lambda a: str(a.get_gid()).startswith("curve"))]
        for part in figure.subfigs
    )
    assert len(adamw) == len(sgd) == 6
    only_adamw = tiny(settings=[{"optimizer": "adamw"}])
    alone = [a.get_ydata() for a in read.artists(grad_norm_curves(only_adamw), "curve")]
    np.testing.assert_allclose(adamw, alone)


@pytest.mark.parametrize("draw", [loss_curves, grad_norm_curves])
def test_without_data_the_reason_is_given(draw, tiny) -> None:
    tables = tiny()
    tables.metrics, tables.probes = tables.metrics.iloc[:0], tables.probes.iloc[:0]
    with pytest.raises(Absent, match="in the tables"):
        draw(tables)
    tables.cells = tables.cells.iloc[:0]
    with pytest.raises(Absent, match="in the tables"):
        draw(tables)
