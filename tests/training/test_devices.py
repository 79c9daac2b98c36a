"""What is asked of CUDA, where there is none: each answer comes from a stand-in for torch.cuda."""

import pytest
import torch

from study.errors import StudyError
from study.training import devices

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


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
