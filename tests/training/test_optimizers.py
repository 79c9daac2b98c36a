"""Every optimizer against its own definition on one step, LoRA+ included."""

from collections.abc import Callable

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

from study.config import CellConfig
from study.data import Corpus
from study.errors import StudyError
from study.models import FrozenBase
from study.training.optimizers import build_optimizer, build_schedule
from study.vocabulary.optimizers import OPTIMIZERS

from .test_loop import run, series

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
def test_loraplus_moves_b_further(cell: Build, name: str) -> None:
    plain = first_update(cell(f"optimizer={name}", f"optimizer.lr={LR}"))
    plus = first_update(
        cell(f"optimizer={name}", f"optimizer.lr={LR}", "optimizer.loraplus_lr_ratio=4")
    )
    torch.testing.assert_close(plus[1], plain[1])
    torch.testing.assert_close(plus[2], 4 * plain[2], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["sgd", "adamw", "signsgd", "lion", "adafactor", "muon"])
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


@pytest.mark.parametrize(
    ("adjust", "of_A", "of_B"),
    [("original", 1.0, 2.0), ("match_rms_adamw", 0.2 * 24**0.5, 0.2 * 16**0.5)],
)
def test_muon_orthogonalises_each_matrix_and_scales_it_by_its_shape(
    cell: Build, adjust: str, of_A: float, of_B: float
) -> None:
    """A is [4, 24], B [16, 4]: all singular values of an update are near the factor."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((4, 24), (16, 4))]
    for weight in weights:
        weight.grad = torch.randn(weight.shape)
    config = cell("optimizer=muon", f"optimizer.lr={LR}", f"optimizer.adjust_lr_fn={adjust}")
    build_optimizer(config.optimizer, weights[:1], weights[1:]).step()
    for weight, factor in zip(weights, (of_A, of_B), strict=True):
        relative = torch.linalg.svdvals(weight.detach()) / (LR * factor)
        assert 0.65 < relative.min() <= relative.max() < 1.25


def test_muon_where_it_cannot_be(cell: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    config = cell("optimizer=muon").optimizer
    stack = torch.nn.Parameter(torch.zeros(2, 4, 4))
    with pytest.raises(StudyError, match=r"adapters of experts.*adapter.targets"):
        build_optimizer(config, [stack], [stack])
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(StudyError, match=r"has no Muon: install torch 2\.9"):
        build_optimizer(config, [], [])


def test_muon_in_a_fold_is_muon_alone(tiny_base: FrozenBase, corpus: Corpus, cell: Build) -> None:
    """Two cells of one rank share a stack, which would have other singular values as a whole."""
    ranks = ("adapter.rank=4", "adapter.rank=4", "adapter.rank=9")
    cells = [
        cell(
            "optimizer=muon",
            rank,
            f"seed={seed}",
            "train.steps=3",
            "probes.sites=[B_update]",
            "probes.steps=[0,1]",
        )
        for seed, rank in enumerate(ranks)
    ]
    for config, folded in zip(cells, run(tiny_base, corpus, cells), strict=True):
        [alone] = run(tiny_base, corpus, [config])
        losses = [series(steps, "loss")[:3] for steps in (folded, alone)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
        for ours, theirs in zip(folded, alone, strict=True):
            if ours.probes is not None and theirs.probes is not None:
                both = ours.probes.merge(theirs.probes, on=["layer", "site"])
                assert len(both) == len(theirs.probes) > 0
                assert (both["norm_x"] / both["norm_y"] - 1).abs().max() < 0.02


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_schedules_are_those_of_transformers(cell: Build, name: str, warmup: int) -> None:
    """A constant one without warm-up is built without them. Also beyond the last step."""
    from transformers.optimization import get_scheduler

    def rates(build: Callable[[torch.optim.Optimizer], LRScheduler]) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=3e-4)
        schedule, found = build(optimizer), list[float]()
        for _ in range(30):
            found.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        return found

    config = cell("train.steps=23", f"train.schedule={name}", f"train.warmup={warmup}").train
    theirs = "constant_with_warmup" if name == "constant" else name
    assert rates(lambda optimizer: build_schedule(config, optimizer)) == rates(
        lambda optimizer: get_scheduler(
            theirs, optimizer, num_warmup_steps=warmup, num_training_steps=23
        )
    )
