"""Processes that train the same cells share them: each cell is trained once, and all end with 0."""

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from study.config import CellConfig
from study.store import claim, is_claimed, load_cells, load_records
from study.sweeps.cells import plan
from tests.forked import wait_for
from tests.sweeps.conftest import Begin

SMALL = (
    *("model=tiny", "train.batch_size=2", "data=file", "data.sequence_length=32"),
    *("data.heldout=2", "train.steps=10", "probes.steps=[0]", "optimizer.lr=1e-2", "pack.fold=1"),
)


@pytest.fixture
def small(jsonl: Path) -> list[str]:
    return ["train", "-m", *SMALL, f"data.path={jsonl}"]


def trained(said: str) -> int:
    return len(re.findall(r"complete in [\d.]+ s", said))


def test_sweeps_that_share_cells_train_every_cell_once(
    begin: Begin, small: list[str], tmp_path: Path
) -> None:
    sweeps = [begin(*small, "adapter.rank=2,3,4", "seed=0,1") for _ in range(2)]
    sweeps.append(begin(*small, "adapter.rank=3,4,5", "seed=0,1", "pack.max_cells=1"))
    assert [process.wait().returncode for process in sweeps] == [0, 0, 0], sweeps[0].said
    assert sum(trained(process.said) for process in sweeps) == 8
    folds = Counter(record["fold"] for record in load_records(tmp_path / "results/default"))
    assert set(folds.values()) == {1}
    assert set(load_cells(tmp_path / "results/default")["status"]) == {"complete"}
    assert not (tmp_path / "results/default/aside").exists()


@pytest.mark.parametrize("stops", [False, True])
def test_a_sweep_waits_for_a_cell_that_another_process_trains(
    begin: Begin, small: list[str], tmp_path: Path, cell: Callable[..., CellConfig], stops: bool
) -> None:
    """It trains the other cell first. A signal ends the wait at once."""
    first, _ = plan([cell(*small[2:], f"adapter.rank={rank}") for rank in (2, 3)])
    folder = tmp_path / "results/default/cells" / first.id
    other = os.fork()
    if not other:
        claimed = claim(folder)
        time.sleep(6000)
        os._exit(claimed is None)
    wait_for(lambda: is_claimed(folder))
    process = begin(*small, "adapter.rank=2,3")
    process.wait_for(lambda: "waiting for" in process.said)
    assert "study: waiting for 1 cell that another process trains\n" in process.said
    assert trained(process.said) == 1
    assert not process.ended
    if stops:
        process.send(signal.SIGTERM)
        assert process.wait().returncode == 143
        last = process.said.splitlines()[-1]
        assert last.startswith("study: stopped; continue with: study train -m")
    os.kill(other, signal.SIGKILL)
    os.waitpid(other, 0)
    if not stops:
        assert process.wait().returncode == 0
        assert trained(process.said) == 2
