"""Exponents against p, over layers and over training: the figures show the tables."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import QuadMesh

from study.figures import against_p
from study.figures.against_p import crossing, exponent_against_p
from study.figures.over_layers import exponent_heatmap
from study.figures.over_steps import exponents_over_training
from study.figures.selection import Absent
from study.vocabulary.quantities import GRADIENT_NORM

POWERS = [("power", p) for p in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)]
LORA, RSLORA = "lora p=1", "rslora p=0.5"


def panels(figure) -> list:
    return [ax for ax in figure.axes if ax.get_visible() and ax.get_label() != "legend"]


def row(tables, **where):
    rows = tables.exponents
    for name, value in where.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.fixture(scope="module")
def powers(tiny) -> SimpleNamespace:
    return tiny(rules=POWERS)


# against p


def test_a_crossing_is_found_between_the_p_and_a_little_outside() -> None:
    p = np.array([0.0, 0.5, 1.0])
    assert crossing(p, 0.5 - p) == pytest.approx(0.5)
    assert crossing(p, 0.7 - p) == pytest.approx(0.7)
    assert crossing(p, 1.1 - p) == pytest.approx(1.1)  # past the last p, along the last line
    assert crossing(p, -0.1 - p) == pytest.approx(-0.1)
    assert np.isnan(crossing(p, 2.0 - p))
    assert np.isnan(crossing(p, np.ones(3)))
    assert np.isnan(crossing(p, 0.5 + p))  # a slope that rises with p has no p*
    assert crossing(p, np.array([0.5, np.nan, -0.5])) == pytest.approx(0.5)
    assert np.isnan(crossing(p[:1], p[:1]))


def test_slopes_are_the_tables_and_the_stable_p_is_where_they_cross(powers, read) -> None:
    figure = exponent_against_p(powers)
    (line,) = (a for a in read.artists(figure, "line adapter_grad 0"))
    ps = [p for _, p in POWERS]
    slopes = [
        row(powers, exponent_p=p, site="adapter_grad", stat="norm", step=0, layer="model")[
            "exponent"
        ]
        for p in ps
    ]
    np.testing.assert_allclose(line.get_xdata(), ps)
    np.testing.assert_allclose(line.get_ydata(), slopes)
    stars = {a.get_gid(): a.get_xdata()[0] for a in read.artists(figure, "star")}
    assert stars["star adapter_grad 0"] == pytest.approx(0.5, abs=0.02)
    assert stars["star adapter_update 0"] == pytest.approx(1.0, abs=0.02)
    assert stars["star adapter_out 6"] == pytest.approx(0.9, abs=0.02)
    labels = [t.get_text() for t in panels(figure)[0].get_legend().get_texts()]
    star = stars["star adapter_update 0"]
    assert f"= {star:.2f}" in labels[1]


def test_the_interval_of_the_stable_p_inverts_those_of_the_slopes() -> None:
    p = np.array([0.0, 0.5, 1.0])
    slope = 0.5 - p
    line = against_p.Line(GRADIENT_NORM, 0, True, False, p, slope, slope - 0.1, slope + 0.1, slope)
    assert line.stable == pytest.approx((0.5, 0.4, 0.6))


def test_one_rule_is_not_enough(tiny) -> None:
    with pytest.raises(Absent, match="two scaling rules"):
        exponent_against_p(tiny(rules=[("lora", np.nan)]))
    with pytest.raises(Absent, match="analyze the study first"):
        exponent_against_p(tiny(fitted=False))


# over layers


def maps(figure) -> dict[str, QuadMesh]:
    return {a.get_gid(): a for a in figure.findobj(QuadMesh) if str(a.get_gid()).startswith("map")}


def test_the_map_holds_every_layers_exponent_at_the_last_step(tiny) -> None:
    tables = tiny()
    figure = exponent_heatmap(tables)
    assert list(maps(figure)) == [f"map {LORA}", f"map {RSLORA}"]
    values = maps(figure)[f"map {LORA}"].get_array()
    assert values.shape == (2, 12)
    for line, kind in enumerate(("q_proj", "down_proj")):
        for block in range(12):
            where = {"scaling": "lora", "site": "adapter_out", "stat": "rms", "step": 6}
            slope = row(tables, layer=f"layers.{block}.{kind}", **where)["exponent"]
            assert values[line, block] == pytest.approx(slope)
    axes = panels(figure)
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["q", "down"]


# over training


def test_exponents_over_steps_are_the_tables_with_their_intervals(tiny, read) -> None:
    tables = tiny()
    figure = exponents_over_training(tables)
    gradient, descent, forward = panels(figure)
    assert [ax.get_title().split("\n")[0] for ax in panels(figure)] == [
        "gradient norm",
        "descent",
        "adapter output",
    ]
    curve = next(a for a in read.artists(figure, f"curve {LORA}") if a.axes is gradient)
    rows = [
        row(tables, scaling="lora", site="adapter_grad", stat="norm", step=s, layer="model")
        for s in (0, 1, 6)
    ]
    np.testing.assert_array_equal(curve.get_xdata(), [0, 1, 6])
    np.testing.assert_allclose(curve.get_ydata(), [r["exponent"] for r in rows])
    band = next(a for a in read.artists(figure, f"band {LORA}") if a.axes is gradient)
    ends = band.get_paths()[0].vertices[:, 1]
    assert ends.min() == pytest.approx(min(r["ci_low"] for r in rows))
    assert ends.max() == pytest.approx(max(r["ci_high"] for r in rows))
    assert [list(a.get_xdata()) for a in read.artists(figure, "curve") if a.axes is forward] == [
        [1, 6]
    ] * 2
    assert [list(a.get_xdata()) for a in read.artists(figure, "curve") if a.axes is descent] == [
        [0, 1]
    ] * 2


def test_the_conditions_of_the_paper_are_read_on_held_out_inputs(tiny, read) -> None:
    tables = tiny()
    said = " ".join(read.texts(exponents_over_training(tables)))
    assert "On the training batch." in said
    assert "held-out" not in said
    heldout = tables.exponents.assign(batch="heldout", exponent=tables.exponents["exponent"] + 0.07)
    tables.exponents = pd.concat([tables.exponents, heldout], ignore_index=True)
    figure = exponents_over_training(tables)
    gradient, _, forward = panels(figure)
    of_lora = tables.exponents[tables.exponents["scaling"] == "lora"]
    of_lora = of_lora[of_lora["layer"].isin(["model", "mean_log"])].sort_values("step")
    of_lora = of_lora[of_lora["kind"].isin(["model", "all"])]
    for ax, batch, site, stat in (
        (gradient, "train", "adapter_grad", "norm"),
        (forward, "heldout", "adapter_out", "rms"),
    ):
        curve = next(a for a in read.artists(figure, f"curve {LORA}") if a.axes is ax)
        here = (of_lora["batch"] == batch) & (of_lora["site"] == site) & (of_lora["stat"] == stat)
        np.testing.assert_allclose(curve.get_ydata(), of_lora.loc[here, "exponent"])
    said = " ".join(read.texts(figure)).replace("\n", " ")
    assert "On the held-out batch: adapter output; on the training batch: all others." in said
    assert read.problems(figure) == []
