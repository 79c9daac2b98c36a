"""Infinite rank under Adam: LoRA converges for a negligible eps, and follows SGD's law otherwise.

The squared distance between the mean of r iid terms and an independent mean of ``r_ref`` is
``c (1/r + 1/r_ref)``. If the first mean is over some of the terms of the second, as in
:func:`delta`, it is ``c (1/r - 1/r_ref)``. Cells draw independently at every rank.
"""

import numpy as np
import pytest
import torch

from .synthetic import D, H, O, Recipe, train

ALPHA = 2.0
LOWEST_EPS = 1e-15


def delta(rank: int, p: float, recipe: Recipe, seed: int) -> torch.Tensor:
    """The delta_w of both layers after the last step, flat. Ranks share the first rows of A0."""
    pairs = []
    for d, o in ((D, H), (H, O)):
        stream = torch.Generator().manual_seed(1000 * seed + d)
        A = torch.empty(rank, d, dtype=torch.float64).uniform_(
            -(d**-0.5), d**-0.5, generator=stream
        )
        pairs.append((A, torch.zeros(o, rank, dtype=torch.float64)))
    return torch.cat([d.flatten() for d in train(pairs, [ALPHA * rank**-p] * 2, recipe)[-1].deltas])


def slope(ranks: tuple[int, ...], values: list[float]) -> float:
    return float(np.polyfit(np.log(ranks), np.log(values), 1)[0])


def test_lora_under_adam_converges_as_one_over_the_root_of_the_rank() -> None:
    recipe = Recipe(lr=0.01, steps=8, adam_eps=LOWEST_EPS)
    ranks, highest, seeds = (16, 64, 256, 1024), 4096, 8
    squares = np.zeros(len(ranks))
    for seed in range(seeds):
        reference = delta(highest, 1.0, recipe, seed)
        runs = [delta(rank, 1.0, recipe, seed) for rank in ranks]
        squares += [
            float((run - reference).square().sum() / reference.square().sum()) / seeds
            for run in runs
        ]
    apart = 1 / np.array(ranks) - 1 / highest
    assert np.polyfit(np.log(apart), np.log(squares), 1)[0] == pytest.approx(1.0, abs=0.1), (
        squares / apart
    )
    assert squares[-1] < 0.02


def test_rslora_under_adam_grows_as_the_root_of_the_rank() -> None:
    recipe, ranks = Recipe(lr=1e-5, steps=4, adam_eps=LOWEST_EPS), (256, 1024, 4096)
    sizes = {p: [float(delta(rank, p, recipe, 0).norm()) for rank in ranks] for p in (0.5, 1.0)}
    assert slope(ranks, sizes[0.5]) == pytest.approx(0.5, abs=0.02)
    assert slope(ranks, sizes[1.0]) == pytest.approx(0.0, abs=0.02)
