"""Rank-free SGD equals explicit SGD within rounding; sampled Grams have the right moments."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from study.adapters.rank_free import equivalent_pair, sample_factor

from .synthetic import D, H, O, Recipe, train

Draw = Callable[[tuple[int, ...], np.random.Generator], np.ndarray]
RECIPES = {
    "plain": Recipe(),
    "momentum": Recipe(momentum=0.9, lr=0.01),
    "nesterov": Recipe(momentum=0.9, nesterov=True, lr=0.01),
    "all": Recipe(0.02, 4.0, 0.9, True, 0.05, False, 0.5, 30, lambda step: 1 - step / 31),
    "all, decoupled": Recipe(0.02, 4.0, 0.9, True, 0.3, True, 0.5, 30, lambda step: 1 - step / 31),
}


def drawn(rank: int, sides: str, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Both layers' A and B, each random if in ``sides``, else 0."""
    g = torch.Generator().manual_seed(seed)

    def factor(side: str, rows: int, columns: int) -> Tensor:
        random = torch.randn(rows, columns, generator=g, dtype=torch.float64) / columns**0.5
        return random if side in sides else torch.zeros_like(random)

    return [(factor("A", rank, d), factor("B", rank, o).mT) for d, o in ((D, H), (H, O))]


@pytest.mark.parametrize(
    ("recipe", "sides"), [*((recipe, "A") for recipe in RECIPES), ("all", "B"), ("all", "AB")]
)
def test_rank_free_is_explicit_within_rounding(recipe: str, sides: str) -> None:
    rank = 64
    pairs, gammas = drawn(rank, sides), [2 / math.sqrt(rank)] * 2
    reduced = [equivalent_pair(*pair) for pair in pairs]
    most = {"A": D, "B": H, "AB": D + H}[sides]
    assert len(reduced[0][0]) == most < rank
    explicit, free = train(pairs, gammas, RECIPES[recipe]), train(reduced, gammas, RECIPES[recipe])
    assert min(step.loss for step in explicit) < 0.95 * explicit[0].loss, "the loss must fall"
    if RECIPES[recipe].clip:
        assert explicit[0].norm > RECIPES[recipe].clip, "clipping must act"
    for ours, theirs in zip(free, explicit, strict=True):
        assert ours.norm == pytest.approx(theirs.norm, rel=1e-10)
        for mine, other in zip(ours.deltas, theirs.deltas, strict=True):
            assert (mine - other).norm() <= 1e-10 * other.norm()


@pytest.mark.parametrize(
    ("draw", "kurtosis"),
    [
        (lambda size, g: g.standard_normal(size), 0.0),
        (lambda size, g: g.uniform(-(3**0.5), 3**0.5, size), -1.2),
    ],
    ids=["normal", "uniform"],
)
def test_a_sampled_gram_has_the_moments_of_a_drawn_one(draw: Draw, kurtosis: float) -> None:
    """Means and variances, on and off the diagonal, against a Monte Carlo of Z^T Z."""
    rank, trials, std = 64, 4000, np.array([1.0, 2.0, 0.5, 1.0])
    stream, unit = np.random.default_rng(0), np.outer(std, std)
    F = np.stack([sample_factor(rank, std, kurtosis, stream) for _ in range(trials)])
    Z = draw((trials, rank, len(std)), stream) * std
    assert np.all(np.triu(F) == F)
    sampled, explicit = (np.swapaxes(Y, 1, 2) @ Y / unit for Y in (F, Z))
    np.testing.assert_allclose(
        sampled.mean(0), explicit.mean(0), atol=5 * np.sqrt(4 * rank / trials)
    )  # 5 sigma
    np.testing.assert_allclose(sampled.var(0), explicit.var(0), rtol=0.15)
    diagonal = sampled.var(0)[np.diag_indices(len(std))] / (2 * rank)  # Wishart's is 2 r
    np.testing.assert_allclose(diagonal, 1 + kurtosis / 2, rtol=0.15)  # 0.4 for uniform entries
