"""Each process of a sharded run holds its own GPU. The GPUs are made up: it computes on the CPU."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from study.store import Lock, is_held, load_cells
from study.sweeps import devices
from study.sweeps import run as sweep
from study.sweeps.devices import Gpu
from tests.sweeps.conftest import wait_for
from tests.together import commands_together

CPU = torch.device("cpu")
NAMES = ("a", "b")


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two GPUs, ``a`` and ``b``, which are the CPU; the folder of their locks."""
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(devices, "_POLL", 0.01)
    monkeypatch.setattr(devices, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(devices, "visible_gpus", lambda: [Gpu(CPU, name) for name in NAMES])
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    folder = tmp_path / "cache/gpus"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def torchrun(
    jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: Path
) -> Callable[..., list[Any]]:
    """Trains a small cell in two processes. ``before(number)`` runs in each: its exit code."""
    small = [
        *("train", "model=tiny", "data=file", f"data.path={jsonl}", "data.sequence_length=48"),
        *(f"results_dir={tmp_path}/results", "name=small", "train.batch_size=3", "adapter.rank=2"),
        *("train.steps=2", "data.heldout=6", "probes.steps=null", "train.shard=true"),
    ]
    monkeypatch.setattr(sys, "argv", ["study", *small])

    def start(before: Callable[[int], None] = lambda number: None) -> list[Any]:
        return commands_together(before, tmp_path)

    return start


def held(folder: Path) -> list[str]:
    return [name for name in NAMES if is_held(folder / f"{name}.lock")]


def test_each_process_holds_its_own_gpu_while_it_trains(
    torchrun: Callable[..., list[Any]], gpus: Path, tmp_path: Path
) -> None:
    def look(number: int) -> None:
        real = sweep.train

        def watched(*arguments: Any) -> Any:
            for results in real(*arguments):
                (tmp_path / "seen").open("a").write(" ".join(held(gpus)) + "\n")
                yield results

        sweep.train = watched

    assert torchrun(look) == [0, 0]
    assert (tmp_path / "seen").read_text().splitlines() == ["a b"] * 3
    assert held(gpus) == []


def test_all_wait_for_the_gpu_of_one(
    torchrun: Callable[..., list[Any]], gpus: Path, tmp_path: Path
) -> None:
    """Another process trains on b. The run trains when it has ended, and not before."""
    other = os.fork()  # a lock of this process would be that of its children too
    if not other:
        with Lock(gpus / "b.lock", timeout=0):
            time.sleep(6000)
    wait_for(lambda: is_held(gpus / "b.lock"))
    (tmp_path / "stderr-1").touch()
    seen: list[Any] = []

    def release() -> None:
        wait_for(lambda: "waiting for a GPU" in (tmp_path / "stderr-1").read_text())
        seen.append((held(gpus), list((tmp_path / "results").rglob("metrics*"))))
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)

    releasing = threading.Thread(target=release)
    releasing.start()
    assert torchrun() == [0, 0]
    releasing.join()
    assert seen == [(["a", "b"], [])]
    assert list(load_cells(tmp_path / "results/small")["status"]) == ["complete"]
