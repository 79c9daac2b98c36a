"""What the tables tell theory about a row under Muon."""

import numpy as np
import pandas as pd

from study.analysis.predictions import spectral_columns


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
