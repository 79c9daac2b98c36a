"""``study train`` in the processes of torchrun: one writes and prints, all train, all end."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from study.config import CellConfig
from study.errors import StudyError
from study.store import load_cells, rows_of
from study.sweeps import processes
from study.sweeps.cells import plan
from tests.conftest import Ran
from tests.together import commands_together

StudyCli = Callable[..., Ran]


@pytest.fixture
def torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """``torchrun("train", ...)``: the exit code of each process, and what it printed on stderr."""

    def start(*arguments: str, before: Callable[[int], None] = lambda _: None) -> list[Any]:
        monkeypatch.setattr(sys, "argv", ["study", *arguments])

        codes = commands_together(before, tmp_path)
        said = [(tmp_path / f"stderr-{number}").read_text() for number in range(len(codes))]
        return list(zip(codes, said, strict=True))

    return start


@pytest.fixture
def small(jsonl: Path, tmp_path: Path) -> list[str]:
    return [
        *("train", "model=tiny", "data=file", f"data.path={jsonl}", "data.sequence_length=48"),
        *(f"results_dir={tmp_path}/results", "name=small", "train.batch_size=3", "adapter.rank=2"),
        *("train.steps=3", "data.heldout=6", "probes.every=null", "probes.steps=[3]"),
    ]


def test_a_sweep_and_its_continuation(
    torchrun: Callable[..., list[Any]], small: list[str], tmp_path: Path, study_cli: StudyCli
) -> None:
    """Two processes train a cell and stop at a signal; one process goes on and trains the rest."""

    def stop_after_step_1(number: int) -> None:
        from study.sweeps import record, signals

        add = record.Recorder.add

        def added(self: Any, results: Any) -> None:
            add(self, results)
            if results[0].step == 1:
                signals.current().asked = 15

        if number == 0:
            record.Recorder.add = added  # type: ignore[method-assign]

    sweep = [small[0], "-m", *small[1:], "adapter.rank=2,3"]
    leader, other = torchrun(*sweep, "train.shard=true", before=stop_after_step_1)
    assert leader[0] == 128 + 15
    assert "study: stopped; continue with: study train -m" in leader[1]
    assert other == (1, "")
    study = tmp_path / "results" / "small"
    [begun] = load_cells(study)["cell_id"]
    assert list(rows_of(study / "cells" / begun, "metrics")["step"]) == [0, 1]

    assert study_cli(*sweep).code == 0
    cells = load_cells(study).set_index("cell_id")
    assert set(cells["status"]) == {"complete"}
    assert len(cells) == 2
    assert list(rows_of(study / "cells" / begun, "metrics")["step"]) == [0, 1, 2, 3]

    leader, other = torchrun(*small, "train.shard=true", "seed=1")
    assert leader[0] == 0, leader[1]
    assert "1 cell" in leader[1]
    assert other == (0, "")


@pytest.mark.parametrize("killed", [False, True])
def test_a_process_that_fails_or_is_lost_leaves_a_cell_that_can_continue(
    torchrun: Callable[..., list[Any]], small: list[str], tmp_path: Path, killed: bool
) -> None:
    """One that fails prints why."""

    def end_at_step_1(number: int) -> None:
        train = processes.train

        def ending(*arguments: Any, **world: Any) -> Any:
            for results in train(*arguments, **world):
                if results[0].step == 1:
                    if killed:
                        os.kill(os.getpid(), signal.SIGKILL)
                    raise RuntimeError("no memory is left")
                yield results

        if number == 1:
            processes.train = ending  # type: ignore[assignment]

    leader, other = torchrun(*small, "train.shard=true", before=end_at_step_1)
    assert leader[0] == 2
    assert "torchrun has failed or was lost: rerun the command to resume" in leader[1]
    assert "Traceback" not in leader[1]
    if not killed:
        assert other == (1, "study: process 1 failed: RuntimeError: no memory is left\n")
    [status] = load_cells(tmp_path / "results" / "small")["status"]
    assert status == "interrupted"


def test_cells_that_these_processes_cannot_train(
    monkeypatch: pytest.MonkeyPatch, cell: Callable[..., CellConfig]
) -> None:
    sharded = plan([cell("train.shard=true")])
    with pytest.raises(StudyError, match="start it with torchrun --nproc-per-node N -m study"):
        processes.check(sharded)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "here")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(StudyError, match="torchrun has started 3 processes"):
        processes.check(plan([cell()]))
    with pytest.raises(StudyError, match="maps 64 features to 64, which 3 processes can't divide"):
        processes.check(sharded)
