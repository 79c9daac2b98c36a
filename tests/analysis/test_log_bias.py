"""The Jensen gap between a mean of logs (data) and the log of a mean (curves), in predictions."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from study.analysis import fit_exponents, with_predictions
from study.analysis.fits import Strands, spread_slopes
from study.theory import log_bias, measure_layer

RANKS, SEEDS, LAYERS = (4, 8, 32, 128), range(60), range(4)
D_IN, D_OUT = 48, 32


def test_spread_slopes_are_those_of_the_variance_over_seeds() -> None:
    """Against numpy, seed by seed. At a missing value, the rank keeps its other seeds."""
    rng = np.random.default_rng(0)
    y_GSRL = rng.standard_normal((2, 5, 3, 4)) * np.array([2.0, 1.0, 0.5])[:, None]
    ranks = np.array([4.0, 16.0, 64.0])
    y_GSRL[0, 0, 1, 2] = np.nan
    group, seed, rank = (
        index.ravel() for index in np.meshgrid(range(2), range(5), ranks, indexing="ij")
    )
    found = spread_slopes(rank, y_GSRL.reshape(-1, 4), Strands.of(group, seed))
    for weight, fit in ((None, np.ones(3)), (rank, ranks)):
        found = spread_slopes(rank, y_GSRL.reshape(-1, 4), Strands.of(group, seed), weight)
        for g, layer in itertools.product(range(2), range(4)):
            variance = np.nanvar(y_GSRL[g, :, :, layer], axis=0, ddof=1)
            expected = np.polyfit(np.log(ranks), variance, 1, w=np.sqrt(fit))[0]
            assert found[g, layer] == pytest.approx(expected)
    alone = spread_slopes(rank[:3], y_GSRL[0, 0], Strands.of(group[:3], seed[:3]))
    assert np.isnan(alone).all(), "one seed has no variance"


@pytest.fixture(scope="module")
def first_steps() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """adapter_out after one SGD step, G A^T A x, for drawn A and inputs aligned with G."""
    cells, probes = [], []
    for rank, seed in itertools.product(RANKS, SEEDS):
        cell = {
            "cell_id": f"{rank}-{seed}",
            "study": "s",
            "model": "m",
            "data": "d",
            "optimizer": "sgd",
            "lr": 1e-3,
        }
        cell |= {
            "rank": float(rank),
            "scaling": "rslora",
            "exponent": math.nan,
            "alpha": 16.0,
            "init": "gaussian",
        }
        cells.append(
            cell
            | {
                "targets": "all",
                "seed": seed,
                "data_seed": seed,
                "gamma": rank**-0.5,
                "status": "complete",
            }
        )
    for number in LAYERS:
        rng = np.random.default_rng(number)
        x = rng.standard_normal((24, D_IN)) * np.geomspace(3, 0.1, D_IN)
        g = rng.standard_normal((24, D_OUT)) * np.geomspace(1, 0.1, D_OUT)
        known = measure_layer(g.T @ x, x, g, kurtosis=0.0)
        place = {
            "layer": f"l{number}.q_proj",
            "block": number,
            "kind": "q_proj",
            "site": "adapter_out",
            "step": 1,
        }
        place |= {"batch": "train", "d_in": D_IN, "d_out": D_OUT, "r_align": known.r_align}
        for cell in cells:
            draw = np.random.default_rng([number, cell["seed"], int(cell["rank"])])
            A = draw.standard_normal((int(cell["rank"]), D_IN))
            out = cell["gamma"] ** 2 * (x @ A.T) @ (A @ (g.T @ x).T)
            probes.append(
                {**place, "cell_id": cell["cell_id"], "rms": float(np.sqrt(np.square(out).mean()))}
            )
    metrics = pd.DataFrame({"cell_id": [], "step": [], "clip_factor": []})
    return pd.DataFrame(cells), metrics, pd.DataFrame(probes)


def test_a_mean_log_is_predicted_with_its_bias_and_missed_without(first_steps) -> None:
    cells, metrics, probes = first_steps
    found = with_predictions(fit_exponents(cells, probes), cells, metrics, probes)
    row = found[(found["layer"] == "mean_log") & (found["kind"] == "all")].iloc[0]
    bias = float(log_bias("adapter_out", "rms", row["spread_slope"]))
    plain = row["predicted"] + bias
    singles = found[~found["layer"].isin(["mean_log", "median"])]
    assert plain == pytest.approx(singles["predicted"].mean()), (
        "single layers' predictions are the curves' own"
    )
    assert row["ci_low"] < row["predicted"] < row["ci_high"]
    assert plain < row["ci_low"], (
        "the curve alone is too steep: the mean log lies under it at low rank"
    )


def test_one_seed_has_no_bias_to_take_off(first_steps) -> None:
    cells, metrics, probes = first_steps
    one = cells[cells["seed"] == 0].reset_index(drop=True)
    found = with_predictions(fit_exponents(one, probes), one, metrics, probes)
    singles = found[~found["layer"].isin(["mean_log", "median"])]
    row = found[(found["layer"] == "mean_log") & (found["kind"] == "all")].iloc[0]
    assert row["predicted"] == pytest.approx(singles["predicted"].mean())
