"""Of several GPUs, each process of a machine trains on its own one. The GPUs are made up."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from study.errors import StudyError
from study.sweeps import devices
from study.sweeps.devices import Device, claim_device, visible_gpus
from tests.sweeps.conftest import wait_for

See = Callable[..., None]


def never() -> bool:
    return False


def claim(name: str, number: int | None = None) -> Device:
    claimed = claim_device(name, never, number)
    assert claimed is not None
    return claimed


@pytest.fixture
def see(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> See:
    """``see("a", "b")``: from now on this process sees two GPUs with these UUIDs."""
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(devices, "_POLL", 0.01)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    def show(*uuids: str) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda d: SimpleNamespace(uuid=uuids[d.index])
        )

    return show


class Worker:
    """A forked process that claims a GPU, writes its number to ``file``, and stays."""

    def __init__(self, file: Path, stop: Callable[[], bool] = never) -> None:
        self.file = file
        self.pid = os.fork()
        if not self.pid:
            claimed = claim_device("cuda", stop)
            assert claimed is not None
            file.write_text(str(claimed.device))
            time.sleep(60)
            os._exit(0)

    @property
    def device(self) -> str:
        return self.file.read_text() if self.file.exists() else ""

    def kill(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[[], Worker]]:
    started: list[Worker] = []

    def start() -> Worker:
        started.append(Worker(tmp_path / f"{len(started)}.device"))
        return started[-1]

    yield start
    for each in started:
        each.kill()


def test_each_process_has_a_gpu_of_its_own_and_the_next_one_waits(
    see: See, worker: Callable[[], Worker], capfd: pytest.CaptureFixture[str]
) -> None:
    see("a", "b")
    first, second = worker(), worker()
    wait_for(lambda: bool(first.device and second.device))
    assert {first.device, second.device} == {"cuda:0", "cuda:1"}
    third = worker()
    time.sleep(0.5)
    assert not third.device
    second.kill()  # as the system ends a process: nothing of its own runs
    wait_for(lambda: bool(third.device))
    assert third.device == second.device
    assert "other processes hold cuda:0, cuda:1" in capfd.readouterr().err


def test_the_same_gpu_under_another_number_is_the_same(
    see: See, worker: Callable[[], Worker]
) -> None:
    see("a", "b")
    first = worker()
    wait_for(lambda: bool(first.device))
    assert first.device == "cuda:0"
    see("c", "a")  # CUDA_VISIBLE_DEVICES=2,0
    assert [gpu.key for gpu in visible_gpus()] == ["c", "a"]
    claimed = claim("auto")
    assert claimed.device == torch.device("cuda", 0)
    claimed.release()
    see("a", "c")
    assert claim("auto").device == torch.device("cuda", 1)


def test_who_sees_one_gpu_shares_it(see: See, worker: Callable[[], Worker]) -> None:
    see("a")
    first = worker()
    wait_for(lambda: bool(first.device))
    assert claim("cuda").device == torch.device("cuda", 0)


def test_the_wait_ends_when_the_sweep_is_stopped(see: See, worker: Callable[[], Worker]) -> None:
    see("a", "b")
    held = worker(), worker()
    wait_for(lambda: all(each.device for each in held))
    assert claim_device("cuda", lambda: True) is None


def test_a_process_of_several_waits_for_the_gpu_with_its_number(
    see: See, worker: Callable[[], Worker], capfd: pytest.CaptureFixture[str]
) -> None:
    see("a", "b", "c")
    other = worker()
    wait_for(lambda: bool(other.device))
    assert other.device == "cuda:0"
    own, beside = claim("cuda", 1), claim("cuda")
    assert own.device == torch.device("cuda", 1)
    assert beside.device == torch.device("cuda", 2), "a sweep leaves both alone"
    own.release()
    beside.release()
    assert claim_device("cuda", lambda: True, 0) is None, "1 and 2 are free, and are not its own"
    assert "other processes hold cuda:0;" in capfd.readouterr().err
    other.kill()
    assert claim("cuda", 0).device == torch.device("cuda", 0)


def test_more_processes_than_gpus_are_refused(see: See) -> None:
    see("a", "b")
    with pytest.raises(StudyError, match=r"than the 2 GPUs .*: lower --nproc-per-node"):
        claim("cuda", 2)


def test_a_cpu_is_not_claimed(see: See, tmp_path: Path) -> None:
    see("a", "b")
    assert claim("cpu").device == torch.device("cpu")
    assert not (tmp_path / "cache/gpus").exists()
