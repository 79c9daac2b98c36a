"""What the tables tell theory about a row under Muon."""

import numpy as np
import pandas as pd
import pytest

from study.analysis.predictions import _add_layers, spectral_columns
from study.vocabulary.quantities import MODEL_WIDE


def test_the_rank_of_a_gradient_is_known_where_every_rank_is_below_it() -> None:
    """Of 64 x 96 layers: a step of 80 tokens, one of 20, a rank above both, and one Newton step."""
    asked = pd.DataFrame({"d_in": 96.0, "d_out": 64.0, "rank_max": [32, 16, 128, 32]})
    rows = pd.DataFrame(
        {
            "sequence_length": [20, 10, 20, 20],
            "batch_size": 2,
            "accumulation": [2, 1, 2, 2],
            "adjust_lr_fn": ["match_rms_adamw", "original", None, "original"],
            "ns_steps": [5.0, 5.0, np.nan, 1.0],
        }
    )
    told = spectral_columns(asked, rows)
    np.testing.assert_array_equal(told["g_rank"], [64, 20, np.nan, np.nan])
    assert list(told["adjust"]) == ["match_rms_adamw", "original", "original", "original"]
    assert set(spectral_columns(asked[["rank_max"]], rows)) == {"adjust"}, "no sizes recorded"


def test_the_descent_of_the_whole_model_has_the_slope_of_the_sum_over_layers() -> None:
    ranks = np.array([4.0, 16.0, 64.0])
    layers = np.stack([3.0 * ranks**0.8, 5.0 * ranks**0.6])
    logs = np.log(ranks) - np.log(ranks).mean()
    exponents = pd.DataFrame(
        {
            "site": "adapter_update",
            "stat": "descent",
            "batch": "train",
            "step": 0,
            "kind": ["q", "k", MODEL_WIDE],
            "log_stat_mean": [*np.log(layers).mean(1), 0.0],
        }
    )
    predicted, curve = np.array([0.8, 0.6, np.nan]), np.zeros(3, int)
    _add_layers(exponents, predicted, np.arange(3), curve)
    slope = logs @ np.log(layers.sum(0)) / (logs @ logs)
    assert predicted[2] == pytest.approx(slope, abs=0.002)

    unknown = np.array([0.8, np.nan, np.nan])
    _add_layers(exponents, unknown, np.arange(3), curve)
    assert np.isnan(unknown[2]), "one layer has no prediction"
