"""Losses in bf16 by the way a layer adds base and adapter."""

from types import SimpleNamespace

import numpy as np
import pytest

from study.figures import FIGURES
from tests.figures.conftest import artists, panels, rows, said, tiny

WAYS = [("float32", np.nan), ("bf16", "factored"), ("bf16", "concatenated")]
LAST = {"rank": 256, "lr": 1e-3, "scaling": "rslora"}
"""The cells of the last panel."""


def in_bf16(rates=(0.0001, 0.001)):
    settings = [
        {"precision": precision, "contraction": form, "lr": lr}
        for precision, form in WAYS
        for lr in rates
    ]
    return tiny(settings=settings)


@pytest.fixture(scope="module")
def study():
    return in_bf16()


def test_losses_are_means_over_the_seeds_of_the_highest_rank(study):
    figure = FIGURES["loss_in_bf16"](study)
    axes = panels(figure)
    assert len(axes) == 4
    own = rows(study.cells, **LAST, contraction="factored")["cell_id"]
    losses = study.metrics[study.metrics["cell_id"].isin(own)].dropna(subset=["loss"])
    expected = losses.groupby("step")["loss"].mean()
    assert "Lines: mean over 2 seeds" in said(figure)
    usual, *others = artists(figure, "curve", axes[3])
    assert usual.get_gid() == "curve bf16, as usual"
    assert len(others) == 2
    np.testing.assert_array_equal(usual.get_xdata(), expected.index)
    np.testing.assert_allclose(usual.get_ydata(), expected)


def test_an_unfinished_study_compares_the_seeds_that_every_form_has(study):
    """One cell is not there: its panel shows the other seed in every form."""
    [lacking] = rows(study.cells, **LAST, contraction="factored", seed=0)["cell_id"]
    there = study.metrics["cell_id"] != lacking
    figure = FIGURES["loss_in_bf16"](
        SimpleNamespace(**vars(study) | {"metrics": study.metrics[there]})
    )
    assert "Lines: mean over 1–2 seeds" in said(figure)
    other = rows(study.cells, **LAST, seed=1).set_index("precision")
    for curve in artists(figure, "curve", panels(figure)[3]):
        own = other.loc[["float32" if curve.get_gid() == "curve float32" else "bf16"], "cell_id"]
        losses = [study.metrics.loc[study.metrics["cell_id"] == c, "loss"].dropna() for c in own]
        assert any(np.allclose(curve.get_ydata(), loss) for loss in losses)
