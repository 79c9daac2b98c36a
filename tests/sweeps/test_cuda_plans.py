"""A pack that is planned for CUDA: its logits, its memory and its folds are those of the GPU."""

from collections.abc import Callable
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from study.config import CellConfig
from study.errors import StudyError
from study.report.provenance import total_seconds
from study.sweeps import packs
from study.sweeps.cells import plan
from study.sweeps.estimate import fold_bytes
from study.sweeps.packs import prepare

Build = Callable[..., CellConfig]
GIB = 2**30


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU of 80 GiB. A test sets how much of it is free."""
    state = SimpleNamespace(free=70 * GIB, total=80 * GIB)
    about = SimpleNamespace(total_memory=state.total)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (state.free, state.total))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    return state


def test_a_base_that_is_held_is_counted_once(gpu: SimpleNamespace, cell: Build) -> None:
    """The second pack of a process has the same folds as the first."""
    cells = plan([cell("device=cuda", "pack.fold=8", f"seed={seed}") for seed in range(8)])
    first = prepare(cells)
    base = first.cells[0].estimate.base_bytes
    three = fold_bytes([each.estimate for each in first.cells[:3]])
    gpu.free = int(three / 0.9) + 1
    nothing: object = None
    sizes = []
    for held in (0, base):
        gpu.free -= held
        pack = prepare(cells, held)
        assert three <= pack.memory < 1.1 * three
        sizes.append([len(fold) for fold in packs.folds(pack, nothing)])  # type: ignore[arg-type]
    assert sizes[0] == sizes[1]
    assert sizes[0][0] == 3


def test_a_cell_larger_than_the_gpu_is_refused(gpu: SimpleNamespace, cell: Build) -> None:
    cells = plan([cell("device=cuda")])
    assert prepare(cells).memory == int(0.9 * 70 * GIB)
    small = SimpleNamespace(total_memory=2**10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_properties", lambda device: small)
        with pytest.raises(StudyError, match=r"take at least .* and there are 9\.54e-07 GiB"):
            prepare(cells)


def test_the_time_of_a_fold_counts_once() -> None:
    """A fold's cells ran at the same time: 5 + 7 seconds, not 5 + 5 + 7."""
    cells = pd.DataFrame({"cell_id": ["a", "b", "c"], "seconds": [5.0, 5.0, 7.0]})
    folded = [{"cell_id": "a", "fold": "x"}, {"cell_id": "b", "fold": "x"}]
    assert total_seconds(cells, [*folded, {"cell_id": "c", "fold": "y"}]) == 12.0
