"""Hand-written gradients against numerical ones, and layouts that cost no copy."""

import torch

from study.adapters.contraction import Factored, factored

K, N, D, O, R = 2, 5, 4, 6, 3  # noqa: E741


def operands(dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(K, N, O), (K, N, D), (K, R, D), (K, O, R)]
    return [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in shapes]


def test_gradients_are_the_functions_own() -> None:
    gamma = torch.tensor([0.5, 3.0], dtype=torch.float64).view(K, 1, 1)
    assert torch.autograd.gradcheck(lambda *a: Factored.apply(*a, gamma), operands(torch.float64))


def test_value_is_the_formula() -> None:
    y, x, A, B = operands(torch.float64)
    gamma = torch.tensor([0.5, 3.0], dtype=torch.float64).view(K, 1, 1)
    torch.testing.assert_close(factored(y, x, A, B, gamma), y + gamma * (x @ A.mT) @ B.mT)


def test_gradients_come_in_the_parameters_layout_and_precision() -> None:
    y, x, A, B = operands(torch.float32)
    half = [tensor.detach().bfloat16().requires_grad_() for tensor in (y, x)]
    out = factored(*half, A, B, torch.ones(K, 1, 1))
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    for parameter in (A, B):
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.is_contiguous()
