"""A fold that runs out of memory is halved and trained again; a plan trains nothing."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from study.config import CellConfig
from study.errors import StudyError
from study.store import load_cells, load_measured, load_records
from study.sweeps import run as sweep
from study.sweeps.cells import Cell, plan
from study.training.run import Run

Build = Callable[..., CellConfig]


@pytest.fixture
def cells(cell: Build, tmp_path: Path) -> list[Cell]:
    shared = (f"results_dir={tmp_path}", "name=full", "pack.fold=4")
    return plan(
        cell(*shared, f"adapter.rank={rank}", f"seed={seed}") for rank in (2, 4) for seed in (0, 1)
    )


def test_a_fold_that_runs_out_of_memory_is_halved_and_goes_on(
    cells: list[Cell],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = []
    real = sweep.train

    def train(base: Any, corpus: Any, runs: Sequence[Run], *more: Any) -> Iterator[Any]:
        sizes.append(len(runs))
        for step, results in enumerate(real(base, corpus, runs, *more)):
            if len(runs) == 4 and step == 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            if len(runs) == 2 and sizes.count(2) == 1:
                raise RuntimeError(
                    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
                )
            yield results

    monkeypatch.setattr(sweep, "train", train)
    sweep.run(cells)
    assert sizes == [4, 2, 1, 1, 2], "halves, in the order of the cells"
    tables = load_measured(tmp_path / "full")
    assert set(tables.cells["status"]) == {"complete"}
    assert not list(tmp_path.rglob("error.log")), "they were trained after all"
    folds = [record["fold"] for record in load_records(tmp_path / "full")]
    assert sorted(folds.count(fold) for fold in set(folds)) == [1, 1, 2]
    assert (
        tables.metrics["step"].groupby(tables.metrics["cell_id"]).agg(list).tolist()
        == [[0, 1, 2, 3]] * 4
    )
    said = capsys.readouterr().err
    assert "out of memory with 4 cells in a fold: retrying 2" in said
    assert "out of memory with 2 cells in a fold: retrying 1" in said


def test_a_single_cell_that_runs_out_of_memory_fails_alone(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sweep.train

    def train(base: Any, corpus: Any, runs: Sequence[Run], *more: Any) -> Iterator[Any]:
        if any(r.config.adapter.rank == 4 and r.config.seed == 1 for r in runs):
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield from real(base, corpus, runs, *more)

    monkeypatch.setattr(sweep, "train", train)
    with pytest.raises(StudyError, match="1 of 4 cells failed"):
        sweep.run(cells)
    assert sorted(load_cells(tmp_path / "full")["status"]) == ["complete"] * 3 + ["failed"]


def test_the_base_is_loaded_once_for_all_packs_of_a_process(
    cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    real = sweep.load_base
    monkeypatch.setattr(sweep, "load_base", lambda *a: loads.append(a) or real(*a))
    with sweep.Worker() as worker:
        for one in cells[:2]:
            sweep.run([one], worker)
    assert len(loads) == 1


def test_the_second_pack_of_a_process_knows_the_base_that_is_loaded(
    cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the base would count twice: as memory that is not free, and as a need."""
    held = []
    real = sweep.prepare
    monkeypatch.setattr(
        sweep, "prepare", lambda pack, bytes_, on: held.append(bytes_) or real(pack, bytes_, on)
    )
    with sweep.Worker() as worker:
        for one in cells[:2]:
            sweep.run([one], worker)
    assert held[0] == 0
    assert 4 * cells[0].card.parameters <= held[1] < 5 * cells[0].card.parameters
