"""A layer whose output is known gives the gradients that the layer itself gives, bit for bit."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from study.adapters import AdapterSpec, Contraction, LoraBank
from study.adapters.contraction import FORMS

D, O, TOKENS = 24, 40, 20  # noqa: E741


def bank_of(specs: Sequence[AdapterSpec], form: str, bias: bool = True) -> LoraBank:
    torch.manual_seed(0)
    linear = nn.Linear(D, O, bias=bias).requires_grad_(False)
    bank = LoraBank(linear, "a.layer", specs, Contraction(form))
    bank.make_pairs()
    return bank


def gradients(bank: LoraBank, dy: Tensor, x: Tensor, known: Tensor | None = None) -> list[Tensor]:
    bank.zero_grad()
    y = bank(x, known=known)
    y.backward(dy)
    return [
        weight.grad for stack in bank.buckets for weight in stack.parameters() if weight is not None
    ]


CELLS = {
    "A drawn": [AdapterSpec(4, 0.5), AdapterSpec(4, 3.0, seed=1), AdapterSpec(17, 2.0)],
    "B drawn": [AdapterSpec(4, 0.5, init="init_b"), AdapterSpec(17, 2.0, init="init_b")],
    "either": [AdapterSpec(4, 0.5), AdapterSpec(4, 0.5, init="init_b")],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cells", CELLS)
def test_gradients_are_those_of_the_layer(cells: str, form: str) -> None:
    bank = bank_of(CELLS[cells], form)
    x, dy = torch.randn(len(CELLS[cells]), TOKENS, D), torch.randn(len(CELLS[cells]), TOKENS, O)
    expected = gradients(bank, dy, x)
    known = bank.base(x)
    found = gradients(bank, dy, x, known)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.is_contiguous() == theirs.is_contiguous()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert sum(bool(gradient.any()) for gradient in found) == len(found) // (
        2 - (cells == "either")
    )


def test_hooks_see_the_known_output_and_its_gradient() -> None:
    """Nothing is computed again: the output is the memory that was given, and x has no gradient."""
    bank = bank_of(CELLS["A drawn"], "factored")
    x, known = torch.randn(3, TOKENS, D, requires_grad=True), torch.randn(3, TOKENS, O)
    seen: list[Tensor] = []

    def see(_: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        assert args == (x,)
        seen.append(y)
        y.register_hook(seen.append)

    bank.register_forward_hook(see)
    dy = torch.randn(3, TOKENS, O)
    bank(x, known=known).backward(dy)
    assert seen[0].data_ptr() == known.data_ptr()
    assert torch.equal(seen[1], dy)
    assert x.grad is None


def test_in_bf16_the_factors_are_cast_as_in_the_layer() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(D, O, dtype=torch.bfloat16).requires_grad_(False)
    bank = LoraBank(linear, "a.layer", [AdapterSpec(4, 0.5)])
    bank.make_pairs()
    x, dy = torch.randn(1, TOKENS, D), torch.randn(1, TOKENS, O).bfloat16()
    expected = gradients(bank, dy, x)
    found = gradients(bank, dy, x, bank(x).detach())
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)
