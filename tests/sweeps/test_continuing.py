"""Cells that were interrupted, or that failed, continue from their last checkpoint."""

import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from study.config import CellConfig
from study.store import CellWriter, StorageError, load_cells, load_measured
from study.sweeps import run as sweep
from study.sweeps.cells import Cell, plan
from tests.sweeps.test_signals import LINE, same_tables

Cli = Callable[..., Any]


@pytest.fixture
def cells(cell: Callable[..., CellConfig], tmp_path: Path) -> Callable[..., list[Cell]]:
    """``cells("results", ...)``: three ranks, with a checkpoint after each step."""

    def of(folder: str, *overrides: str) -> list[Cell]:
        common = (f"results_dir={tmp_path / folder}", "train.steps=8", "checkpoint.every=1")
        return plan([cell(*common, *overrides, f"adapter.rank={rank}") for rank in (2, 3, 4)])

    return of


@pytest.fixture
def break_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Exception], None]:
    """``break_at(3, error)``: training raises ``error`` after step 3."""
    real = sweep.train

    def of(step: int, error: Exception) -> None:
        def train(*arguments: Any) -> Iterator[Any]:
            for results in real(*arguments):
                yield results
                if any(each and each.metrics["step"] == step for each in results):
                    raise error

        monkeypatch.setattr(sweep, "train", train)

    return of


def full_disk() -> StorageError:
    error = StorageError("can't write a file: No space left on device; free some space")
    error.errno = errno.ENOSPC
    return error


def test_a_full_disk_gives_one_line_and_the_cells_continue_when_there_is_space(
    study_cli: Cli, jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = [*LINE, f"data.path={jsonl}", "train.steps=12", "checkpoint.every=3"]
    assert study_cli(*line, "results_dir=whole").code == 0
    real = CellWriter.append
    written = []

    def append(self: CellWriter, table: str, table_rows: pd.DataFrame) -> None:
        written.append(table)
        if len(written) > 9:
            raise full_disk()
        real(self, table, table_rows)

    monkeypatch.setattr(CellWriter, "append", append)
    ran = study_cli(*line)
    assert ran.code == 2
    assert "Traceback" not in ran.err
    assert ran.err.splitlines()[-1] == f"study: {full_disk()}"
    assert list(load_cells(tmp_path / "results/default")["status"]) == ["interrupted"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert study_cli(*line).code == 0
    same_tables(tmp_path / "whole/default", tmp_path / "results/default")


def test_cells_of_a_fold_that_stopped_at_different_steps_continue_one_by_one(
    cells: Callable[..., list[Cell]],
    break_at: Callable[[int, Exception], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sweep.run(cells("whole"))
    real = sweep.train
    for index, step in ((0, 2), (1, 4), (2, 4)):
        break_at(step, full_disk())
        with pytest.raises(StorageError):
            sweep.run([cells("results")[index]])
    sizes = []
    monkeypatch.setattr(sweep, "train", lambda *a: sizes.append(len(a[2])) or real(*a))
    sweep.run(cells("results", "pack.fold=3"))
    assert sizes == [1, 2], "those at one step go on together"
    one, two = (load_measured(tmp_path / folder / "default") for folder in ("whole", "results"))
    assert list(one.metrics["loss"]) == pytest.approx(
        list(two.metrics["loss"]), nan_ok=True, rel=1e-5
    )
    assert set(two.cells["status"]) == {"complete"}


def test_a_cell_that_failed_continues_from_the_checkpoint_before(
    cells: Callable[..., list[Cell]],
    break_at: Callable[[int, Exception], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sweep.run(cells("whole")[:1])
    real = sweep.train
    break_at(5, RuntimeError("the driver was restarted"))
    one = cells("results")[0]
    assert list(sweep.train_pack([one], sweep.Worker()).failures) == [one.folder]
    assert load_cells(one.study_dir)["status"].item() == "failed"
    monkeypatch.setattr(sweep, "train", real)
    sweep.run([one])
    record = json.loads((one.folder / "record.json").read_text())
    assert [each["step"] for each in record["resumed"]] == [6]
    same_tables(tmp_path / "whole/default", tmp_path / "results/default")
    assert not (one.folder / "checkpoints").exists()
    [aside] = (one.study_dir / "aside").iterdir()
    assert json.loads((aside / "record.json").read_text())["status"] == "failed"
