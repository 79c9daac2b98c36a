"""Every optimizer against its own definition on one step, LoRA+ included."""

from dataclasses import replace

import pytest
import torch
from transformers.optimization import get_scheduler

from study.training.optimizers import build_optimizer, build_schedule
from study.vocabulary.optimizers import OPTIMIZERS

LR = 0.1


def first_update(config, **changed):
    """One step from B = 0 with one gradient for A and B: (gradient, update of A, update of B)."""
    gradient = torch.tensor([[3.0, -0.02], [0.5, -4.0]])
    A, B = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.zeros(2, 2))
    A.grad, B.grad = gradient.clone(), gradient.clone()
    build_optimizer(replace(config.optimizer, **changed), [A], [B]).step()
    return gradient, A.detach() - 1, B.detach()


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_first_step(cell, name):
    extra = {"eps": 1e-12} if OPTIMIZERS[name].has_eps else {}
    config = cell(f"optimizer={name}", f"optimizer.lr={LR}")
    gradient, dA, dB = first_update(config, **extra)
    expected = {
        "sgd": -LR * gradient,
        "momentum": -LR * gradient,
        "nesterov": -LR * 1.9 * gradient,  # the look-ahead adds momentum times the fresh buffer
        "rmsprop": -LR * 10 * gradient.sign(),  # 1 / sqrt(1 - 0.99)
        "adafactor": None,
        "muon": None,
    }.get(name, -LR * gradient.sign())
    if name == "muon":  # Newton-Schulz leaves singular values between 0.7 and 1.2
        steps = torch.linalg.svdvals(dB) / LR
        assert 0.68 < steps.min() <= steps.max() < 1.21
        U, _, V = torch.linalg.svd(gradient)
        torch.testing.assert_close(dB / LR, -U @ V, atol=0.35, rtol=0)
        expected = dB
    elif expected is None:  # a unit rms and the gradient's signs (clip_threshold = 1)
        assert dB.square().mean().sqrt().item() == pytest.approx(LR, rel=1e-3)
        assert torch.equal(dB.sign(), -gradient.sign())
        expected = dB
    torch.testing.assert_close(dB, expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(dA, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_loraplus_moves_b_further(cell, name):
    config = cell(f"optimizer={name}", f"optimizer.lr={LR}")
    plain, plus = first_update(config), first_update(config, loraplus_lr_ratio=4.0)
    torch.testing.assert_close(plus[1], plain[1])
    torch.testing.assert_close(plus[2], 4 * plain[2], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["sgd", "adamw", "signsgd", "lion", "adafactor", "muon"])
def test_weight_decay_shrinks_a_by_lr_times_decay(cell, name):
    """Decoupled decay, and coupled decay under a linear rule, agree in the first step."""
    config = cell(f"optimizer={name}", f"optimizer.lr={LR}")
    shrunk = first_update(config, weight_decay=0.5)[1] - first_update(config)[1]
    torch.testing.assert_close(shrunk, torch.full((2, 2), -LR * 0.5), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 7])
def test_schedules_are_those_of_transformers(cell, name, warmup):
    """A constant one without warm-up is built without them. Also beyond the last step."""

    def rates(build):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=3e-4)
        schedule, found = build(optimizer), list[float]()
        for _ in range(30):
            found.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        return found

    config = cell("train.steps=23", f"train.schedule={name}", f"train.warmup={warmup}").train
    theirs = "constant_with_warmup" if name == "constant" else name
    ours = rates(lambda optimizer: build_schedule(config, optimizer))
    assert ours == rates(lambda optimizer: get_scheduler(theirs, optimizer, warmup, 23))
