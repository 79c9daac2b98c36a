"""A problem small enough for explicit adapters in float64: two adapted linears, tanh between."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from pytorch_optimizer import SGDW
from torch import Tensor

Pair = tuple[Tensor, Tensor]
D, H, O, N = 7, 5, 4, 40  # noqa: E741
"""Features in, between and out; examples."""


@dataclass
class Recipe:
    """Hyper-parameters of SGD with every linear option."""

    lr: float = 0.05
    ratio: float = 1.0
    momentum: float = 0.0
    nesterov: bool = False
    decay: float = 0.0
    decoupled: bool = False
    clip: float | None = None
    steps: int = 12
    schedule: Callable[[int], float] = field(default=lambda step: 1.0)


RECIPES = {
    "nesterov": Recipe(momentum=0.9, nesterov=True, lr=0.01),
    "all": Recipe(0.02, 4.0, 0.9, True, 0.05, False, 0.5, 30, lambda step: 1 - step / 31),
    "all, decoupled": Recipe(0.02, 4.0, 0.9, True, 0.3, True, 0.5, 30, lambda step: 1 - step / 31),
}


def weights_and_data(seed: int = 0) -> tuple[list[Tensor], Tensor, Tensor]:
    """``W: [[H, D], [O, H]]``, inputs ``[N, D]`` with few strong directions, targets ``[N, O]``."""
    g = torch.Generator().manual_seed(seed)
    W = [
        torch.randn(shape, generator=g, dtype=torch.float64) / shape[1] ** 0.5
        for shape in ((H, D), (O, H))
    ]
    scale = 2.0 / torch.arange(1, D + 1, dtype=torch.float64)
    x, target = (torch.randn(N, n, generator=g, dtype=torch.float64) for n in (D, O))
    return W, x * scale, target


@dataclass
class Step:
    """After an update: each layer's delta_w, and the gradient norm and loss before it."""

    deltas: list[Tensor]
    norm: float
    loss: float


def train(
    pairs: Sequence[Pair], gammas: Sequence[float], recipe: Recipe, fixed: str = ""
) -> list[Step]:
    """Train the adapters of both layers with torch's autograd and an optimizer from a package.

    ``fixed``: a factor whose gradient is 0, not None, so that it decays.
    """
    W, x, target = weights_and_data()
    A_l, B_l = (
        [p.clone().double().requires_grad_() for p in side] for side in zip(*pairs, strict=True)
    )
    groups = [{"params": A_l, "lr": recipe.lr}, {"params": B_l, "lr": recipe.lr * recipe.ratio}]
    decay = {"weight_decay": recipe.decay, "weight_decouple": recipe.decoupled}
    optimizer = SGDW(groups, momentum=recipe.momentum, nesterov=recipe.nesterov, **decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.schedule)
    taken = []
    for _ in range(recipe.steps):
        deltas = [gamma * B @ A for A, B, gamma in zip(A_l, B_l, gammas, strict=True)]
        y = torch.tanh(x @ (W[0] + deltas[0]).mT) @ (W[1] + deltas[1]).mT
        loss = (y - target).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        for weight in {"A": A_l, "B": B_l, "": []}[fixed]:
            weight.grad.zero_()
        norm = torch.nn.utils.clip_grad_norm_([*A_l, *B_l], recipe.clip or float("inf"))
        optimizer.step()
        schedule.step()
        after = [(gamma * B @ A).detach() for A, B, gamma in zip(A_l, B_l, gammas, strict=True)]
        taken.append(Step(after, float(norm), float(loss.detach())))
    return taken
