"""Cutting an adapter to rank k through its factors, against a dense SVD of ``gamma B A``."""

import pytest
import torch
from torch import nn

from study.adapters import AdapterSpec, LoraBank, truncating
from study.adapters.truncation import singular_factors

D, O = 12, 9  # noqa: E741


def dense(delta: torch.Tensor, rank: int) -> torch.Tensor:
    U, s, Vh = torch.linalg.svd(delta, full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ Vh[:rank]


@pytest.mark.parametrize("rank", [1, 5, 9, 12, 40])
def test_the_first_k_factors_are_the_best_approximation_of_rank_k(rank: int) -> None:
    torch.manual_seed(rank)
    A, B = torch.randn(rank, D, dtype=torch.float64), torch.randn(O, rank, dtype=torch.float64)
    A_mD, B_Om, s = singular_factors(A, B)
    torch.testing.assert_close(s, torch.linalg.svdvals(B @ A)[: len(s)])
    for k in range(len(s) + 1):
        torch.testing.assert_close(B_Om[:, :k] @ A_mD[:k], dense(B @ A, k))


def bank_of(*specs: AdapterSpec) -> LoraBank:
    bank = LoraBank(nn.Linear(D, O, bias=False), "layer", specs)
    bank.make_pairs()
    for pair in bank.pairs:
        nn.init.normal_(pair.B_OR)
    return bank


def test_a_bank_computes_with_the_truncated_delta_and_is_restored_afterwards() -> None:
    bank = bank_of(AdapterSpec(4, gamma=0.5), AdapterSpec(30, gamma=3.0))
    x = torch.randn(2, 7, D)
    before = bank(x)
    deltas = [pair.B_OR.detach() @ pair.A_RD.detach() * pair.gamma for pair in bank.pairs]
    with truncating([bank]) as truncation:
        shares = truncation.keep(3)
        for out, x_cell, delta, share in zip(bank(x), x, deltas, shares, strict=True):
            torch.testing.assert_close(
                out, x_cell @ (bank.base.weight + dense(delta, 3)).mT, rtol=1e-4, atol=1e-4
            )
            assert share == pytest.approx(
                float(dense(delta, 3).square().sum() / delta.square().sum()), rel=1e-4
            )
        truncation.keep(0)
        torch.testing.assert_close(bank(x).flatten(0, 1), bank.base(x).flatten(0, 1))
    assert torch.equal(bank(x), before)
