"""Finite ranks converge to infinite rank as r^(-1/2), under every variant of SGD."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from pytorch_optimizer import SGDW
from torch import Tensor

from study.config import CellConfig
from study.data.batches import Corpus
from study.models import FrozenBase
from tests.trained import trained

Pair = tuple[Tensor, Tensor]
D, H, O, N = 7, 5, 4, 40  # noqa: E741
"""Features in, between and out; examples."""


@dataclass
class Recipe:
    """Hyper-parameters of SGD with Nesterov's momentum and every linear option."""

    lr: float
    ratio: float = 1.0
    decay: float = 0.0
    decoupled: bool = False
    clip: float = math.inf
    steps: int = 12
    falls: bool = False
    momentum: float = 0.9


RECIPES = {
    "nesterov": Recipe(0.01),
    "all": Recipe(0.02, 4.0, 0.05, False, 0.5, 30, True),
    "all, decoupled": Recipe(0.02, 4.0, 0.3, True, 0.5, 30, True),
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


def train_small(
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
    optimizer = SGDW(groups, momentum=recipe.momentum, nesterov=True, **decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 1 - recipe.falls * step / (recipe.steps + 1)
    )
    taken = []
    for _ in range(recipe.steps):
        deltas = [gamma * B @ A for A, B, gamma in zip(A_l, B_l, gammas, strict=True)]
        y = torch.tanh(x @ (W[0] + deltas[0]).mT) @ (W[1] + deltas[1]).mT
        loss = (y - target).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        for weight in {"A": A_l, "B": B_l, "": []}[fixed]:
            weight.grad.zero_()
        norm = torch.nn.utils.clip_grad_norm_([*A_l, *B_l], recipe.clip)
        optimizer.step()
        schedule.step()
        after = [(gamma * B @ A).detach() for A, B, gamma in zip(A_l, B_l, gammas, strict=True)]
        taken.append(Step(after, float(norm), float(loss.detach())))
    return taken


ALPHA, V = 2.0, 0.3
RANKS = (2**12, 2**16, 2**20, 2**24)
SEEDS = 6


def limit(side: str) -> tuple[list[Pair], list[float]]:
    """The pairs of infinite rank as the bank makes them, for an init of variance ``V``."""
    eye = [torch.eye(d if side == "A" else o, dtype=torch.float64) for d, o in ((D, H), (H, O))]
    zero = [torch.zeros(o, d, dtype=torch.float64) for d, o in ((D, H), (H, O))]
    pairs = list(zip(eye, zero, strict=True)) if side == "A" else list(zip(zero, eye, strict=True))
    return pairs, [ALPHA * math.sqrt(V)] * 2


def finite(side: str, rank: int, seed: int) -> tuple[list[Pair], list[float]]:
    """Pairs of a Gaussian init of variance ``V``, as small ones that SGD trains alike.

    SGD keeps A and B^T in the span of the init Z, so it needs only a square root of Z^T Z. That is
    Bartlett's triangle (Anderson 2003, theorem 7.2.1), whose size does not depend on the rank.
    """
    stream = np.random.default_rng([rank, seed])
    pairs = []
    for d, o in ((D, H), (H, O)):
        fan = d if side == "A" else o
        triangle = np.triu(stream.standard_normal((fan, fan)), 1)
        triangle[np.diag_indices(fan)] = np.sqrt(stream.chisquare(rank - np.arange(fan)))
        F = torch.from_numpy(triangle * V**0.5)
        pairs.append(
            (F, torch.zeros(o, fan).double())
            if side == "A"
            else (torch.zeros(fan, d).double(), F.mT)
        )
    return pairs, [ALPHA / math.sqrt(rank)] * 2


def distances(recipe: Recipe, side: str, reference: list[Step]) -> np.ndarray:
    """For each rank, the relative distance after the last step: root mean square over seeds."""
    last = torch.cat([delta.flatten() for delta in reference[-1].deltas])
    squares = []
    for rank in RANKS:
        runs = [train_small(*finite(side, rank, seed), recipe)[-1] for seed in range(SEEDS)]
        deltas = [torch.cat([delta.flatten() for delta in run.deltas]) for run in runs]
        apart = [(delta - last).square().sum() / last.square().sum() for delta in deltas]
        squares.append(np.mean([float(each) for each in apart]))
    return np.sqrt(squares)


@pytest.mark.parametrize(("recipe", "side"), [("all", "A"), ("all, decoupled", "B")])
def test_finite_ranks_converge_to_it(recipe: str, side: str) -> None:
    """Over four decades of rank, so that a reference wrong by 1e-3 would show."""
    reference = train_small(*limit(side), RECIPES[recipe], fixed=side)
    measured = distances(RECIPES[recipe], side, reference)
    slope = np.polyfit(np.log(RANKS), np.log(measured), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.05), measured
    assert measured[-1] < 3e-3
    [highest] = [train_small(*finite(side, RANKS[-1], 0), RECIPES[recipe])]
    norms = [[step.norm for step in run] for run in (highest, reference)]
    assert norms[0] == pytest.approx(norms[1], rel=0.02), (
        "the gradient norm converges too: clipping depends on it"
    )


@pytest.mark.parametrize("side", ["A", "B"])
def test_without_decay_it_is_full_fine_tuning(side: str) -> None:
    """At the layerwise rate ``lr alpha^2 v``, momentum included."""
    recipe = RECIPES["nesterov"]
    reference = train_small(*limit(side), recipe, fixed=side)
    W, x, target = weights_and_data()
    tuned = [w.clone().requires_grad_() for w in W]
    optimizer = torch.optim.SGD(
        tuned, lr=recipe.lr * ALPHA**2 * V, momentum=recipe.momentum, nesterov=True
    )
    for step in reference:
        optimizer.zero_grad()
        (torch.tanh(x @ tuned[0].mT) @ tuned[1].mT - target).square().sum(1).mean().backward()
        optimizer.step()
        torch.testing.assert_close(
            step.deltas, [(t - w).detach() for t, w in zip(tuned, W, strict=True)]
        )


@pytest.mark.parametrize("init", ["kaiming", "init_b"])
def test_a_cell_of_infinite_rank_is_near_a_high_rank(
    tiny_base: FrozenBase, corpus: Corpus, cell: Callable[..., CellConfig], init: str
) -> None:
    """In the training loop with every option: losses, gradient norms and probes are close."""
    common = ["adapter.scaling=rslora", f"adapter.init={init}", "optimizer=nesterov"]
    common += ["optimizer.weight_decay=0.1", "optimizer.loraplus_lr_ratio=2", "optimizer.lr=0.02"]
    common += ["train.clip=0.5", "train.schedule=linear", "probes.steps=[0,1,3]"]
    common += ["probes.batch=[train,heldout,noise]", "probes.stats=[all,rho,r_align]"]
    runs = [
        trained(tiny_base, corpus, cell(f"adapter.rank={rank}", *common))[0]
        for rank in (4096, "inf")
    ]
    losses, norms = (
        [[step.metrics.get(name) for step in run] for run in runs] for name in ("loss", "grad_norm")
    )
    assert losses[1][0] - losses[1][-1] != 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert norms[0] == pytest.approx(norms[1], rel=5e-2)
    probes = [run[-1].probes.set_index(["layer", "site", "batch"])["norm"] for run in runs]
    assert set(probes[1].index.get_level_values("site")) == {
        *("adapter_in", "adapter_out", "layer_out", "layer_out_grad", "adapter_in_grad", "delta_w")
    }
    both = np.log(probes[0].reindex(probes[1].index) / probes[1])
    assert both.abs().max() < 0.1, both.abs().idxmax()
