"""A stuck cell from the command line to every view: it is done, marked, and left out of fits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import study

SWEEP = (
    *("train", "-m", "model=tiny", "optimizer=sgd", "adapter.scaling=rslora", "seed=0,1,2"),
    *("adapter.rank=2,4", "train.batch_size=2", "data.sequence_length=32", "data.heldout=2"),
    *("train.steps=6", "train.eval_every=2", "probes.every=1", "probes.steps=null", "data=file"),
    *("name=large", "optimizer.lr=1e4"),
)


def test_a_learning_rate_that_is_far_too_large(
    jsonl: Path, study_cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = [*SWEEP, f"data.path={jsonl}"]
    assert study_cli(*line).code == 0
    tables = study.load("results/large")
    assert set(tables.cells["status"]) == {"stuck"}
    for cell, step in zip(tables.cells["cell_id"], tables.cells["stuck_step"], strict=True):
        rows = tables.metrics[tables.metrics["cell_id"] == cell].set_index("step")
        assert (rows.loc[step:5, "grad_norm"] == 0).all()
        assert rows.loc[step - 1, "grad_norm"] > 0
        losses = rows["eval_loss"]
        assert losses.iloc[-1] < losses.iloc[0], "it looks like an improvement"

    assert "6 cells, 6 done, nothing to train" in study_cli(*line).err
    shown = study_cli("status", "results/large").out
    assert "large: 6 stuck" in shown
    assert f"no gradient from step {tables.cells['stuck_step'].iloc[0]:.0f}" in shown

    # Its frozen weights still have outputs and norms, on which a line could be fitted.
    last = tables.cells["stuck_step"].max() - 1
    outputs = tables.probes[tables.probes["site"] == "adapter_out"]
    assert outputs["step"].max() > last
    assert tables.exponents["step"].max() == last
    assert tables.losses.empty or tables.losses["loss"].isna().all()
