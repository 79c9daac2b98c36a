"""Of several GPUs, each process of a machine trains on its own one. The GPUs are made up."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from study.config import CellConfig
from study.errors import StudyError
from study.sweeps import devices
from study.sweeps import run as sweep
from study.sweeps.cells import plan
from study.sweeps.devices import others_wait, own_device, visible_gpus
from study.sweeps.sharing import Outcome
from tests.sweeps.conftest import wait_for

Build = Callable[..., CellConfig]
See = Callable[..., None]


def never() -> bool:
    return False


@pytest.fixture
def see(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> See:
    """``see("a", "b")``: from now on this process sees two GPUs with these UUIDs."""
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(devices, "_POLL", 0.01)
    monkeypatch.setattr(devices, "_last", [])
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
            with own_device("cuda", stop) as device:
                file.write_text(str(device))
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
    assert not others_wait()
    third = worker()
    wait_for(others_wait)
    assert not third.device
    second.kill()  # as the system ends a process: nothing of its own runs
    wait_for(lambda: bool(third.device))
    assert third.device == second.device
    wait_for(lambda: not others_wait())
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
    with own_device("auto", never) as device:
        assert device == torch.device("cuda", 0)
    see("a", "c")
    with own_device("auto", never) as device:
        assert device == torch.device("cuda", 1)


def test_who_sees_one_gpu_shares_it(see: See, worker: Callable[[], Worker]) -> None:
    see("a")
    first = worker()
    wait_for(lambda: bool(first.device))
    with own_device("cuda", never) as device:
        assert device == torch.device("cuda", 0)


def test_the_wait_ends_when_the_sweep_is_stopped(see: See, worker: Callable[[], Worker]) -> None:
    see("a", "b")
    held = worker(), worker()
    wait_for(lambda: all(each.device for each in held))
    with own_device("cuda", lambda: True) as device:
        assert device is None
    assert not others_wait()


def test_the_next_pack_of_a_process_stays_on_its_gpu(
    see: See, worker: Callable[[], Worker]
) -> None:
    see("a", "b")
    other = worker()
    wait_for(lambda: bool(other.device))
    for _ in range(2):
        with own_device("cuda", never) as device:
            assert device == torch.device("cuda", 1)
        other.kill()


def test_a_process_of_several_waits_for_the_gpu_with_its_number(
    see: See, worker: Callable[[], Worker], capfd: pytest.CaptureFixture[str]
) -> None:
    see("a", "b", "c")
    other = worker()
    wait_for(lambda: bool(other.device))
    assert other.device == "cuda:0"
    with own_device("cuda", never, 1) as device:
        assert device == torch.device("cuda", 1)
        with own_device("cuda", lambda: True) as beside:  # a sweep leaves both alone
            assert beside == torch.device("cuda", 2)
    with own_device("cuda", lambda: True, 0) as device:
        assert device is None, "1 and 2 are free, and are not its own"
    assert "other processes hold cuda:0;" in capfd.readouterr().err
    other.kill()
    with own_device("cuda", never, 0) as device:
        assert device == torch.device("cuda", 0)


def test_more_processes_than_gpus_are_refused(see: See) -> None:
    see("a", "b")
    with pytest.raises(StudyError, match=r"than the 2 GPUs .*: lower --nproc-per-node"):  # noqa: SIM117
        with own_device("cuda", never, 2):
            pass


def test_a_cpu_is_not_claimed(see: See, tmp_path: Path) -> None:
    see("a", "b")
    with own_device("cpu", never) as device:
        assert device == torch.device("cpu")
    assert not (tmp_path / "cache/gpus").exists()


@pytest.mark.parametrize("waiting", [False, True])
def test_a_pack_trains_on_its_own_device_and_leaves_no_base_there_for_who_waits(
    waiting: bool, cell: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, used = torch.device("cuda", 1), []

    @contextmanager
    def own(name: str, must_stop: Callable[[], bool], number: int | None) -> Iterator[Any]:
        assert (name, number) == ("cuda", None)
        yield gpu

    def train_on(device: torch.device, *_: object) -> Outcome:
        used.append(device)
        return Outcome()

    monkeypatch.setattr(sweep, "own_device", own)
    monkeypatch.setattr(sweep, "_train_on", train_on)
    monkeypatch.setattr(sweep, "others_wait", lambda: waiting)
    monkeypatch.setattr(sweep, "release_memory", lambda device: used.append(device))
    monkeypatch.setattr(sweep, "_BASE", {"a base": None})
    sweep.train_pack(plan([cell(f"results_dir={tmp_path}", "device=cuda")]))
    assert used == ([gpu, gpu] if waiting else [gpu])
    assert bool(sweep._BASE) is not waiting
