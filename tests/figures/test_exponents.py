"""Exponents against p, over layers, over training and by setting: the figures show the tables."""

import itertools

import numpy as np
import pandas as pd
import pytest

from study.figures.against_p import exponent_against_p
from study.figures.exponents import exponents_by_setting, exponents_over_training
from tests.figures.checklist import problems
from tests.figures.conftest import artists, only, panels, row, rows, said, tiny

POWERS = [("power", p) for p in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)]
BITS = [{"quant_bits": np.nan}, {"quant_bits": 8.0}, {"quant_bits": 4.0}]


def test_slopes_are_the_tables_and_the_stable_p_is_where_they_cross():
    tables = tiny(rules=POWERS)
    figure = exponent_against_p(tables)
    line = only(figure, "line adapter_grad 0")
    fits = rows(tables.exponents, site="adapter_grad", stat="norm", step=0, layer="model")
    np.testing.assert_allclose(line.get_xdata(), [p for _, p in POWERS])
    np.testing.assert_allclose(line.get_ydata(), fits.sort_values("exponent_p")["exponent"])
    stars = {a.get_gid(): a.get_xdata()[0] for a in artists(figure, "star")}
    assert stars["star adapter_grad 0"] == pytest.approx(0.5, abs=0.02)
    assert stars["star adapter_update 0"] == pytest.approx(1.0, abs=0.02)
    assert stars["star adapter_out 6"] == pytest.approx(0.9, abs=0.02)
    assert f"= {stars['star adapter_update 0']:.2f}" in said(figure)


def test_exponents_over_steps_are_the_tables_with_their_intervals():
    tables = tiny()
    figure = exponents_over_training(tables)
    gradient, descent, forward = panels(figure)
    heads = [ax.get_title().split("\n")[0] for ax in panels(figure)]
    assert heads == ["gradient norm", "descent", "adapter output"]
    where = {"scaling": "lora", "site": "adapter_grad", "stat": "norm", "layer": "model"}
    fits = rows(tables.exponents, **where).sort_values("step")
    curve, band = (only(figure, f"{part} lora", gradient) for part in ("curve", "band"))
    np.testing.assert_array_equal(curve.get_xdata(), [0, 1, 6])
    np.testing.assert_allclose(curve.get_ydata(), fits["exponent"])
    ends = band.get_paths()[0].vertices[:, 1]
    assert (ends.min(), ends.max()) == pytest.approx((fits["ci_low"].min(), fits["ci_high"].max()))
    assert list(only(figure, "curve lora", forward).get_xdata()) == [1, 6]
    assert list(only(figure, "curve lora", descent).get_xdata()) == [0, 1]

    # The conditions of the paper are read on held-out inputs, where these were probed.
    assert "On the training batch." in said(figure)
    heldout = tables.exponents.assign(batch="heldout", exponent=tables.exponents["exponent"] + 0.07)
    tables.exponents = pd.concat([tables.exponents, heldout], ignore_index=True)
    figure = exponents_over_training(tables)
    gradient, _, forward = panels(figure)
    for ax, batch, where in (
        (gradient, "train", {"site": "adapter_grad", "stat": "norm", "layer": "model"}),
        (forward, "heldout", {"site": "adapter_out", "stat": "rms", "layer": "mean_log"}),
    ):
        fits = rows(tables.exponents, scaling="lora", batch=batch, **where)
        fits = fits[fits["kind"].isin(["model", "all"])].sort_values("step")
        np.testing.assert_allclose(only(figure, "curve lora", ax).get_ydata(), fits["exponent"])
    text = "On the held-out batch: adapter output; on the training batch: all others."
    assert text in said(figure)
    assert problems(figure) == []


def test_points_and_bars_by_setting_show_the_table():
    tables = tiny(settings=BITS)
    figure = exponents_by_setting(tables)
    fits = tables.exponents.assign(bits=tables.exponents["quant_bits"].fillna(0))
    names = ("no quant bits", "quant bits 8", "quant bits 4")
    ends = [*itertools.product(zip((0, 8, 4), names, strict=True), (0, 6))]
    for ax, scaling in zip(panels(figure), ("lora", "rslora"), strict=True):
        for (bits, name), step in ends:
            where = {"site": "adapter_grad", "step": step, "scaling": scaling, "bits": bits}
            fit, who = row(fits, **where), f"{name}: gradient norm, step {step}"
            assert only(figure, f"point {who}", ax).get_xdata()[0] == fit["exponent"]
            (bar,) = only(figure, f"bar {who}", ax).get_segments()
            np.testing.assert_allclose(bar[:, 0], [fit["ci_low"], fit["ci_high"]])
            theory = [one.get_segments()[0][0, 0] for one in artists(figure, f"theory {who}", ax)]
            assert theory == [fit["predicted"]][: step == 0]
