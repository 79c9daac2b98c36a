"""A stuck cell from the command line to every view: it is done, marked, and left out of fits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import study

Cli = Callable[..., Any]
SWEEP = (
    *("train", "-m", "model=tiny", "optimizer=sgd", "adapter.scaling=rslora", "seed=0,1,2"),
    *("adapter.rank=2,4", "train.batch_size=2", "data.sequence_length=32", "data.heldout=2"),
    *(
        "train.steps=6",
        "train.eval_every=2",
        "probes.every=1",
        "probes.steps=null",
        "data=file",
        "name=large",
    ),
)


@pytest.fixture(scope="module")
def _here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stuck")


@pytest.fixture
def large(
    _here: Path, jsonl: Path, study_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Runs the console script beside a sweep whose learning rate is far too large."""
    monkeypatch.chdir(_here)
    line = [*SWEEP, f"data.path={jsonl}", "optimizer.lr=1e4"]
    if not (_here / "results").exists():
        assert study_cli(*line).code == 0

    def run(*arguments: str) -> Any:
        return study_cli(*(arguments or line))

    return run


def test_its_record_says_so(large: Cli) -> None:
    tables = study.load("results/large")
    assert set(tables.cells["status"]) == {"stuck"}
    for cell, step in zip(tables.cells["cell_id"], tables.cells["stuck_step"], strict=True):
        rows = tables.metrics[tables.metrics["cell_id"] == cell].set_index("step")
        assert (rows.loc[step:5, "grad_norm"] == 0).all()
        assert rows.loc[step - 1, "grad_norm"] > 0
        assert rows["eval_loss"].iloc[-1] < rows["eval_loss"].iloc[0], (
            "it looks like an improvement"
        )


def test_a_sweep_does_not_train_it_again(large: Cli) -> None:
    assert "6 cells, 6 done, nothing to train" in large().err


def test_status_counts_it_and_says_when(large: Cli) -> None:
    shown = large("status", "results/large").out
    assert "large: 6 stuck" in shown
    step = study.load("results/large").cells["stuck_step"].iloc[0]
    assert f"no gradient from step {step:.0f}" in shown


def test_fits_end_where_it_got_stuck(large: Cli) -> None:
    """Its frozen weights still have outputs and norms, on which a line could be fitted."""
    assert large("analyze", "results/large").code == 0
    tables = study.load("results/large")
    last = tables.cells["stuck_step"].max() - 1
    outputs = tables.probes[tables.probes["site"] == "adapter_out"]
    assert outputs["step"].max() > last
    assert tables.exponents["step"].max() == last
    assert tables.losses.empty or tables.losses["loss"].isna().all()
