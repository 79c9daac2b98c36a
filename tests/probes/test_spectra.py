"""The largest singular value against a full decomposition."""

import pytest
import torch
from torch import Tensor

from study.probes.delta_w import core, largest_singular_values


def largest_singular_value(*factors: Tensor) -> Tensor:
    return largest_singular_values([core(*factors)])[0]


def trained(o: int, r: int, d: int) -> tuple[Tensor, Tensor]:
    """``B = G A^T`` as after lazy SGD; the singular values of G fall slowly."""
    falling = torch.arange(1, 65).float() ** -0.7
    A = (torch.rand(r, d) * 2 - 1) / d**0.5
    return (torch.randn(o, 64) * falling) @ torch.randn(64, d) @ A.mT, A


@pytest.mark.parametrize("r", [1, 4, 48, 300])
@pytest.mark.parametrize(("d", "o"), [(192, 576), (576, 192), (10, 300), (3, 2)])
def test_it_is_the_largest_singular_value(d: int, o: int, r: int) -> None:
    torch.manual_seed(0)
    for B, A in (trained(o, r, d), (torch.randn(o, r), torch.randn(r, d))):
        exact = torch.linalg.matrix_norm(B.double() @ A.double(), 2).item()
        for scale in (1e-12, 1.0, 1e6):
            assert largest_singular_value(B * scale, A).item() == pytest.approx(
                exact * scale, rel=1e-4
            )
        assert largest_singular_value(B @ A).item() == pytest.approx(exact, rel=1e-4)


def test_zero_and_non_finite() -> None:
    B, A = torch.zeros(6, 3), torch.randn(3, 5)
    assert largest_singular_value(B, A).item() == 0
    B[0, 0] = float("inf")
    assert largest_singular_value(B, A).isnan()
