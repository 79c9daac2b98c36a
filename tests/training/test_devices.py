"""Which device is chosen, with a stand-in for what torch sees."""

import pytest
import torch

from study.errors import StudyError
from study.training.devices import choose_device


@pytest.mark.parametrize(
    ("name", "available", "chosen"),
    [("auto", True, "cuda"), ("cuda", True, "cuda"), ("cpu", True, "cpu"), ("auto", False, "cpu")],
)
def test_auto_is_cuda_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, name: str, available: bool, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert choose_device(name).type == chosen


def test_cuda_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StudyError, match="no CUDA device: use device=cpu or device=auto"):
        choose_device("cuda")
