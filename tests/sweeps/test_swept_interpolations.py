"""An interpolation among the values of a swept key is resolved in each cell."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import study
from study.config.compose import expected_best

Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_an_interpolation_in_the_sweep_of_an_experiment_is_each_cells_own(
    study_cli: Cli, tmp_path: Path
) -> None:
    """Hydra resolves the sweeper's settings once, for the configuration without overrides."""
    name = "learning_rate_rho_tiny"
    one_of_each = ("seed=0", "adapter.alpha=4", "adapter.scaling=0", "probes.steps=null")
    ran = study_cli(
        "train", f"experiment={name}", "train.steps=1", "adapter.rank=2,32", *one_of_each
    )
    assert ran.code == 0, ran.err
    cells = study.load(str(tmp_path / "results" / name)).cells
    best = {rank: expected_best(4.0, rank, 1, 85, 9.8, 10) for rank in (2, 32)}
    for rank, rate in best.items():
        own = sorted(cells.loc[cells["rank"] == rank, "lr"])
        assert own == pytest.approx([rate * 2.0**k for k in range(-2, 3)], rel=5e-3)
