"""The Jensen gap between a mean of logs (data) and the log of a mean (curves), in predictions."""

import math

import numpy as np
import pandas as pd
import pytest

from study.analysis import fit_exponents, with_predictions
from study.theory import Layer, curve, measure_layer, slope

from .losses import runs

RANKS, SEEDS, LAYERS = (4, 8, 32, 128), range(60), range(4)
D_IN, D_OUT = 48, 32


@pytest.fixture(scope="module")
def first_steps() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """adapter_out after one SGD step, G A^T A x, for drawn A and inputs aligned with G."""
    setting = {"optimizer": "sgd", "init": "gaussian", "ranks": RANKS, "seeds": SEEDS}
    cells, _ = runs(lambda c: 1.0, rates=(1e-3,), rules=(("rslora", math.nan),), **setting)
    probes = []
    for number in LAYERS:
        rng = np.random.default_rng(number)
        x = rng.standard_normal((24, D_IN)) * np.geomspace(3, 0.1, D_IN)
        g = rng.standard_normal((24, D_OUT)) * np.geomspace(1, 0.1, D_OUT)
        known = measure_layer(g.T @ x, x, g, kurtosis=0.0)
        place = {"layer": f"l{number}.q_proj", "block": number, "kind": "q_proj", "step": 1}
        place |= {"site": "adapter_out", "batch": "train", "d_in": D_IN, "d_out": D_OUT}
        place |= {name: getattr(known, name) for name in ("r_align", "r_diag", "r_eff", "r_joint")}
        for cell in cells.to_dict("records"):
            draw = np.random.default_rng([number, cell["seed"], int(cell["rank"])])
            A = draw.standard_normal((int(cell["rank"]), D_IN))
            out = x @ A.T @ A @ x.T @ g
            rms = float(np.sqrt(np.square(out).mean())) / cell["rank"]
            probes.append(place | {"cell_id": cell["cell_id"], "rms": rms})
    metrics = pd.DataFrame({"cell_id": [], "step": [], "clip_factor": []})
    return cells, metrics, pd.DataFrame(probes)


def test_a_mean_log_is_predicted_with_the_bias_of_each_layer(first_steps) -> None:
    cells, metrics, probes = first_steps
    found = with_predictions(fit_exponents(cells, probes), cells, metrics, probes)
    row = found[(found["layer"] == "mean_log") & (found["kind"] == "all")].iloc[0]
    singles = found[~found["layer"].isin(["mean_log", "median"])]
    assert row["predicted"] == pytest.approx(singles["predicted"].mean())
    assert row["ci_low"] < row["predicted"] < row["ci_high"]
    curves = []
    for r_align in probes.drop_duplicates("layer")["r_align"]:
        layer = Layer(D_IN, D_OUT, r_align, kurtosis=0.0)
        law = {"step": 1, "optimizer": "sgd", "p": 0.5, "layer": layer}
        curves.append(slope(curve("adapter_out", "rms", RANKS, **law), RANKS))
    assert np.mean(curves) < row["ci_low"], (
        "the curve alone is too steep: the mean log lies under it at low rank"
    )


def test_a_prediction_does_not_depend_on_the_number_of_seeds(first_steps) -> None:
    cells, metrics, probes = first_steps
    predicted = []
    for seeds in (1, 2, 5, 60):
        some = cells[cells["seed"] < seeds].reset_index(drop=True)
        found = with_predictions(fit_exponents(some, probes), some, metrics, probes)
        row = found[(found["layer"] == "mean_log") & (found["kind"] == "all")].iloc[0]
        predicted.append(row["predicted"])
    assert predicted == pytest.approx([predicted[0]] * 4, abs=1e-12)
