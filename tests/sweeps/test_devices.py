"""Which device is chosen. Of several GPUs, each process trains on its own one. All are made up."""

import multiprocessing
import time
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch

from study.errors import StudyError
from study.sweeps import processes
from study.sweeps.processes import claim_device
from study.training.devices import choose_device
from tests.forked import wait_for

HELD = ExitStack()


def claim(name, held=HELD):
    return claim_device(name, lambda: False, held)


@pytest.fixture
def see(monkeypatch, tmp_path):
    """``see("a", "b")``: from now on this process sees two GPUs with these UUIDs."""
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(processes, "_POLL", 0.01)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    def show(*uuids):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda d: SimpleNamespace(uuid=uuids[d.index])
        )

    return show


@pytest.fixture
def worker(tmp_path):
    """``worker()``: a process that claims a GPU, writes its name to a file, and stays."""
    started = []

    def hold(file):
        file.write_text(str(claim("cuda")))
        time.sleep(6000)

    def start():
        file = tmp_path / f"{len(started)}.device"
        process = multiprocessing.get_context("fork").Process(target=hold, args=[file])
        process.start()
        started.append(process)
        return process, file

    yield start
    for process in started:
        process.kill()
        process.join()


def test_each_process_has_a_gpu_of_its_own_and_the_next_one_waits(see, worker, capfd):
    see("a", "b")
    (_, first), (process, second) = worker(), worker()
    wait_for(lambda: first.exists() and second.exists())
    wait_for(lambda: {first.read_text(), second.read_text()} == {"cuda:0", "cuda:1"})
    _, third = worker()
    time.sleep(0.5)
    assert not third.exists()
    assert claim_device("cuda", lambda: True, HELD) is None, "the sweep is stopped"
    process.kill()  # as the system ends a process: nothing of its own runs
    wait_for(lambda: third.exists() and third.read_text() == second.read_text())
    assert "other processes hold cuda:0, cuda:1" in capfd.readouterr().err


def test_the_same_gpu_under_another_number_is_the_same(see, worker):
    see("a", "b")
    _, first = worker()
    wait_for(lambda: first.exists() and first.read_text() == "cuda:0")
    for visible, taken in (("ca", 0), ("ac", 1), ("a", 0)):  # who sees one GPU shares it
        see(*visible)
        with ExitStack() as held:
            assert claim("auto", held) == torch.device("cuda", taken)


def test_a_process_of_torchrun_takes_the_gpu_with_its_number(see, worker, monkeypatch):
    see("a", "b")
    _, other = worker()
    wait_for(lambda: other.exists() and other.read_text() == "cuda:0")
    for key in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE"):
        monkeypatch.setenv(key, "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with ExitStack() as held:
        assert claim("cuda", held) == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(StudyError, match="another process trains on cuda:0: wait for it"):
        claim("cuda")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(StudyError, match=r"than the 2 GPUs .*: lower --nproc-per-node"):
        claim("cuda")


def test_auto_is_cuda_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [choose_device(name).type for name in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(StudyError, match="no CUDA device: use device=auto"):
        choose_device("cuda")
