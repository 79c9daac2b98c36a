"""Families: which cells a figure shows together, and their labels; the line of their settings."""

import numpy as np
import pandas as pd
import pytest

from study.analysis.wording import settings
from study.figures.selection import families

BASE = {"scaling": "lora", "exponent": np.nan, "rank": 4.0, "seed": 0, "optimizer": "adamw"}
BASE |= {"lr": 1e-4}
KNOWN = {"model": "smollm2", "data": "pydoc", "optimizer": "adamw", "lr": 1e-4, "alpha": 16.0}
KNOWN |= {"batch_size": 4, "accumulation": 2, "sequence_length": 48, "steps": 12}
KNOWN |= {"seed": 0, "data_seed": 0}
LINE = "SmolLM2, pydoc, AdamW, learning rate 0.0001, α = 16, batch 8 × 48 tokens, 1 seed, 12 steps"


def cells(base=BASE, **columns):
    number = max(map(len, columns.values()), default=1)
    frame = pd.DataFrame({name: [value] * number for name, value in base.items()} | columns)
    return frame.assign(cell_id=[f"c{k}" for k in range(number)])


def test_labels_name_what_differs_and_nothing_else():
    labels = [f.label for f in families(cells(lr=[1e-4, 1e-3], model=["smollm2", "smollm2"]))]
    assert labels == ["learning rate 0.0001", "learning rate 0.001"]
    table = cells(
        optimizer=["adamw", "adamw", "sgd"],
        alpha=[16.0, 8.0, 8.0],
        clip=[None, 1.0, 1.0],
        sequence_length=[48, 96, 96],
        eps=[1e-8, 1e-8, None],
    )
    assert {f.label for f in families(table)} == {
        "AdamW, α = 16, no clip, sequence length 48",
        "AdamW, α = 8, clip 1, sequence length 96",
        "SGD, α = 8, clip 1, sequence length 96",
    }


@pytest.mark.parametrize(
    ("columns", "old", "new"),
    [
        ({}, "", ""),
        ({"lr": [1e-4, 1e-3]}, "learning rate 0.0001", "several learning rates"),
        ({"batch_size": [4, 8]}, "batch 8 × 48 tokens", "several batch sizes"),
        ({"batch_size": [4, 8], "accumulation": [2, 1]}, "", ""),
        ({"sequence_length": [48, 96]}, "batch 8 × 48 tokens", "batch 8, several sequence lengths"),
        ({"sequence_length": [np.nan]}, "8 × 48 tokens", "8 sequences"),
        ({"seed": [0, 1, 1], "data_seed": [0, 0, 0]}, "1 seed", "2 seeds"),
        ({"steps": [1]}, "12 steps", "1 step"),
        ({"alpha": [np.nan]}, "α = 16, ", ""),
    ],
)
def test_every_setting_is_named_and_what_varies_is_several(columns, old, new):
    assert settings(cells(KNOWN, **columns)) == LINE.replace(old, new)
