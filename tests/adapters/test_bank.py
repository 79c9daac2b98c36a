"""The first A and B of a bank: what a draw depends on, and its variance."""

import math

import pytest
import torch
from torch import nn

from study.adapters import AdapterSpec, LoraBank
from study.adapters.bank import initial_pair
from study.vocabulary.inits import INITS, UNIFORM


def test_init_depends_on_seed_and_layer() -> None:
    spec = AdapterSpec(64, 1.0, seed=3)
    A, _ = initial_pair(spec, "layer", 300, 5)
    bank = LoraBank(nn.Linear(300, 5), "layer", [AdapterSpec(64, 9.0, 8), spec])
    assert torch.equal(A, bank.buckets[0].A_kRD[1])
    assert not torch.equal(A, initial_pair(spec, "another", 300, 5)[0])
    assert not torch.equal(A, initial_pair(AdapterSpec(64, 1.0, seed=4), "layer", 300, 5)[0])


@pytest.mark.parametrize("rank", [8, 96, 384])
@pytest.mark.parametrize("init", sorted(INITS))
def test_every_init_has_the_variance_it_states(init: str, rank: int) -> None:
    d, o = 96, 64
    A, B = initial_pair(AdapterSpec(rank, 1.0, seed=1, init=init), "layer", d, o)
    assert (A.shape, B.shape) == ((rank, d), (o, rank))
    drawn, zero = (A, B) if INITS[init].drawn == "A" else (B, A)
    assert not zero.any()
    variance = {
        "kaiming": 1 / (3 * d),
        "gaussian": 1 / d,
        "orthogonal": 1 / max(rank, d),
        "scaled": 1 / (3 * d * rank),
        "init_b": 1 / (3 * o),
    }[init]
    # Five standard deviations of a sample variance, whose variance is var^2 (2 + kurtosis) / n.
    spread = 5 * math.sqrt((2 + INITS[init].kurtosis) / drawn.numel())
    assert drawn.square().mean().item() == pytest.approx(variance, rel=spread)
    if INITS[init].kurtosis == UNIFORM:
        assert drawn.abs().max().item() <= math.sqrt(3 * variance) * (1 + 1e-6)


@pytest.mark.parametrize("init", ["kaiming", "gaussian", "init_b"])
def test_ranks_draw_independently_and_rules_share_a_draw(init: str) -> None:
    """A fit over ranks takes its points for independent. 200 layers: |correlation| < 5 sd."""
    drawn = {"init_b": 1}.get(init, 0)
    pairs = []
    for layer in map(str, range(200)):
        low, high = (initial_pair(AdapterSpec(r, 1.0, init=init), layer, 48, 32) for r in (8, 64))
        shared = initial_pair(AdapterSpec(8, 9.0, init=init), layer, 48, 32)
        assert torch.equal(low[drawn], shared[drawn]), "gamma, so the rule, has no part in a draw"
        rows = (low[1].T, high[1].T[:8]) if drawn else (low[0], high[0][:8])
        pairs.append(torch.stack([row.flatten() for row in rows]))
    entries = torch.cat(pairs, dim=1)
    correlation = float(torch.corrcoef(entries)[0, 1])
    assert abs(correlation) < 5 / entries.shape[1] ** 0.5
