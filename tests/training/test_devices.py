"""What is asked of CUDA, where there is none: each answer comes from a stand-in for torch.cuda."""

from types import SimpleNamespace

import pytest
import torch

from study.errors import StudyError
from study.models.base import _free
from study.training import devices

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GIB = 2**30


@pytest.mark.parametrize(
    ("name", "available", "chosen"),
    [
        ("auto", True, CUDA),
        ("cuda", True, CUDA),
        ("cpu", True, CPU),
        ("auto", False, CPU),
        ("cpu", False, CPU),
    ],
)
def test_auto_is_cuda_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, name: str, available: bool, chosen: torch.device
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert devices.choose_device(name) == chosen


def test_cuda_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        StudyError, match="torch sees no CUDA device: use device=cpu or device=auto"
    ):
        devices.choose_device("cuda")


def test_a_gpu_is_described_by_its_name_and_by_the_memory_of_its_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU called {device}")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append("cache"))
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda device: asked.append(f"peak of {device}")
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * GIB, 80 * GIB))
    described = devices.describe_device(CUDA)
    assert (described["device"], described["device_name"]) == ("cuda", "a GPU called cuda")
    assert devices.peak_memory_gb(CUDA) == 3.0
    assert _free(CUDA) == 5 * GIB
    devices.release_memory(CPU)
    assert asked == [], "the memory of a CPU is not cached"
    devices.release_memory(CUDA)
    assert asked == ["cache", "peak of cuda"]


def test_a_cpu_is_described_by_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    described = devices.describe_device(CPU)
    assert described["device"] == "cpu"
    assert described["device_name"]
    assert described["threads"] == torch.get_num_threads()
    used = SimpleNamespace(ru_maxrss=2**21)
    monkeypatch.setattr(devices.resource, "getrusage", lambda who: used)
    monkeypatch.setattr(devices.sys, "platform", "linux")
    assert devices.peak_memory_gb(CPU) == 2.0, "KiB"
    monkeypatch.setattr(devices.sys, "platform", "darwin")
    assert devices.peak_memory_gb(CPU) == 2.0 / 1024, "bytes"


def test_a_rate_is_measured_on_larger_products_where_small_ones_are_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sides: dict[str, int] = {}

    def measured(device: torch.device, side: int) -> float:
        sides[device.type] = side
        return 1.0

    monkeypatch.setattr(devices, "measure_matmul_rate", measured)
    for device in (CPU, CUDA):
        devices.matmul_rate.__wrapped__(device)
    assert sides == {"cpu": 1024, "cuda": 2048}
