"""The ``predicted`` column."""

import math
import time

import numpy as np
import pandas as pd
import pytest

from study.errors import StudyError
from study.theory import Layer, Modifiers, predicted_exponent, predicted_exponents

RANKS = (4, 8, 16, 32, 64, 128, 256)


def test_a_table_of_rows():
    frame = pd.DataFrame(
        [
            ("adapter_update", "descent", 0, "sgd", 0.5, math.nan, math.nan, 0.0),
            ("adapter_update", "descent", 0, "adamw", 0.5, math.nan, math.nan, 0.5),
            ("adapter_grad", "norm", 0, "adamw", 1.0, math.nan, math.nan, -0.5),
            ("adapter_out", "rms", 0, "adamw", 1.0, 576, 5.0, math.nan),
            ("adapter_out", "rms", 1, "sgd", 1.0, 576, math.nan, math.nan),
            ("delta_w", "spectral", 1, "sgd", 1.0, 576, 5.0, math.nan),
            ("adapter_out", "rms", 7, "sgd", 1.0, 576, 5.0, math.nan),
        ],
        columns=["site", "stat", "step", "optimizer", "p", "d_in", "r_align", "expected"],
    ).astype({"site": "category"})
    f = frame
    predicted = predicted_exponents(
        f.site, f.stat, f.step, f.optimizer, f.p, RANKS, d_in=f.d_in, r_align=f.r_align
    )
    np.testing.assert_allclose(predicted, f.expected, atol=1e-12)


def test_rows_agree_with_the_scalar_form_and_may_have_ranks_of_their_own():
    layer, modifiers = Layer(64, 32, 5.0, 6.0), Modifiers(decay="decoupled", eps_ratio=500.0)
    setting = {"step": 1, "optimizer": "adamw", "p": 0.5, "layer": layer, "modifiers": modifiers}
    fits = [RANKS, (32, 64, 128), (8,)]
    others = {"init": ["A", "B", "A"], "decay": "decoupled", "eps_ratio": 500.0}
    others |= {"d_in": 64, "d_out": 32, "r_align": 5.0, "r_sign": 6.0}
    rows = predicted_exponents("adapter_out", "rms", 1, "adamw", 0.5, fits, **others)
    # Scalar columns apply to every row.
    assert rows[0] == predicted_exponent("adapter_out", "rms", fits[0], init="A", **setting)
    assert rows[1] == predicted_exponent("adapter_out", "rms", fits[1], init="B", **setting)
    assert math.isnan(rows[2])


def test_no_eps_is_no_obstacle():
    assert predicted_exponents(
        "B_update", "norm", 0, "signsgd", 1.0, RANKS, eps_ratio=math.nan
    ) == pytest.approx([0.5])


def test_many_rows_are_quick():
    step = np.tile([0, 1, 2], 100_000)
    start = time.perf_counter()
    predicted = predicted_exponents(
        "adapter_out", "rms", step, "sgd", 0.5, RANKS, d_in=576, r_align=5.0
    )
    assert time.perf_counter() - start < 10
    assert np.isnan(predicted[::3]).all()
    assert len(np.unique(predicted[1::3])) == 1


def test_a_mistake_is_named():
    with pytest.raises(StudyError, match="unknown optimizer"):
        predicted_exponents("adapter_out", "rms", 1, ["sgd", "sdg"], 0.5, RANKS)
