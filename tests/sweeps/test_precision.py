"""bf16 rounds every activation and moves no exponent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import study

PLACE = ["site", "stat", "step", "kind", "layer"]


def test_exponents_in_bf16_lie_in_the_intervals_of_float32(
    study_cli: Callable[..., Any], jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = [
        "train",
        "-m",
        "model=tiny",
        "data=file",
        f"data.path={jsonl}",
        "data.sequence_length=32",
    ]
    line += [
        "data.heldout=6",
        "train.batch_size=4",
        "train.steps=1",
        "train.eval_every=0",
        "probes.steps=[0,1]",
    ]
    line += [
        "precision=float32,bf16",
        "adapter.scaling=rslora",
        "adapter.rank=4,16,64",
        "seed=0,1,2,3,4",
    ]
    assert study_cli(*line).code == 0
    assert study_cli("analyze", "results/default").code == 0
    exponents = study.load("results/default").exponents.query("layer in ['mean_log', 'model']")
    exponents = exponents[exponents["stat"].isin(["rms", "norm", "descent"])]
    found, wanted = (
        exponents[exponents["precision"] == p].set_index(PLACE) for p in ("bf16", "float32")
    )
    found = found.loc[wanted.index]
    assert len(wanted) > 50
    # Adam's first update is the same for every seed, so its interval has no width: allow 0.01.
    inside = found["exponent"].between(wanted["ci_low"] - 0.01, wanted["ci_high"] + 0.01)
    assert inside.all(), found[~inside]
    assert not np.array_equal(found["exponent"], wanted["exponent"]), "bf16 rounds"
