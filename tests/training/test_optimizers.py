"""Every optimizer against its own definition on one step, LoRA+ included."""

from collections.abc import Callable

import pytest
import torch

from study.config import CellConfig
from study.training.optimizers import build_optimizer
from study.vocabulary.optimizers import OPTIMIZERS

Build = Callable[..., CellConfig]
LR = 0.1


def first_update(config: CellConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step from B = 0 with one gradient for A and B: (gradient, update of A, update of B)."""
    gradient = torch.tensor([[3.0, -0.02], [0.5, -4.0]])
    A, B = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.zeros(2, 2))
    A.grad, B.grad = gradient.clone(), gradient.clone()
    build_optimizer(config.optimizer, [A], [B]).step()
    return gradient, A.detach() - 1, B.detach()


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_first_step(cell: Build, name: str) -> None:
    extra = ["optimizer.eps=1e-12"] if OPTIMIZERS[name].has_eps else []
    gradient, dA, dB = first_update(cell(f"optimizer={name}", f"optimizer.lr={LR}", *extra))
    expected = {
        "sgd": -LR * gradient,
        "momentum": -LR * gradient,
        "nesterov": -LR * 1.9 * gradient,  # the look-ahead adds momentum times the fresh buffer
        "rmsprop": -LR * 10 * gradient.sign(),  # 1 / sqrt(1 - 0.99)
        "adafactor": None,
    }.get(name, -LR * gradient.sign())
    if (
        expected is None
    ):  # its first step has unit rms and the gradient's signs (clip_threshold = 1)
        assert dB.square().mean().sqrt().item() == pytest.approx(LR, rel=1e-3)
        assert torch.equal(dB.sign(), -gradient.sign())
        expected = dB
    torch.testing.assert_close(dB, expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(dA, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_loraplus_moves_b_further(cell: Build, name: str) -> None:
    plain = first_update(cell(f"optimizer={name}", f"optimizer.lr={LR}"))
    plus = first_update(
        cell(f"optimizer={name}", f"optimizer.lr={LR}", "optimizer.loraplus_lr_ratio=4")
    )
    torch.testing.assert_close(plus[1], plain[1])
    torch.testing.assert_close(plus[2], 4 * plain[2], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["sgd", "adamw", "signsgd", "lion", "adafactor"])
def test_weight_decay_shrinks_a_by_lr_times_decay(cell: Build, name: str) -> None:
    """Decoupled decay, and coupled decay under a linear rule, agree in the first step."""
    options = [f"optimizer={name}", f"optimizer.lr={LR}"]
    plain, decayed = (
        first_update(cell(*options)),
        first_update(cell(*options, "optimizer.weight_decay=0.5")),
    )
    torch.testing.assert_close(
        decayed[1] - plain[1], torch.full((2, 2), -LR * 0.5), rtol=1e-3, atol=1e-4
    )
