"""Contractions: values and gradients against float64, and the choice of a form."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from study.adapters import AdapterSpec, Contraction, LoraBank
from study.adapters.contraction import FLOAT, FORMS

DIMS = (24, 40)
SPECS = [AdapterSpec(2, 0.5, seed=0), AdapterSpec(2, 3.0, seed=1), AdapterSpec(16, 1.5, seed=2)]
BASES = {
    "bias": lambda d, o: nn.Linear(d, o),
    "plain": lambda d, o: nn.Linear(d, o, bias=False),
    "conv1d": lambda d, o: Conv1D(o, d),
}


def trained_bank(base, contraction, b_scale=1.0):
    torch.manual_seed(1)
    bank = LoraBank(base.requires_grad_(False), "layer", SPECS, contraction)
    for bucket in bank.buckets:
        nn.init.normal_(bucket.B_kOR, std=b_scale)
    bank.make_pairs()
    return bank


def gradients(bank):
    bank.bind_grads()
    found = [weight.grad for pair in bank.pairs for weight in pair[:2]]
    return [grad.clone() for grad in found if grad is not None]


def passes(bank, x, dy):
    """Output, gradient of the input, and those of every cell's A and B."""
    bank.zero_grad()
    x = x.detach().requires_grad_()
    y = bank(x)
    y.backward(dy)
    return [y.detach(), x.grad, *gradients(bank)]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("b_scale", [1.0, 1e-3])
def test_every_form_is_the_exact_product_within_rounding(base, b_scale):
    d, o = DIMS
    torch.manual_seed(0)
    linear = BASES[base](d, o)
    x, dy = torch.randn(len(SPECS) * 3, 7, d), torch.randn(len(SPECS) * 3, 7, o)
    banks = {form: trained_bank(linear, Contraction(form), b_scale) for form in FORMS}
    assert {form: {b.form for b in bank.buckets} for form, bank in banks.items()} == {
        form: {form} for form in FORMS
    }
    exact = []
    for x_, dy_, (A, B, gamma) in zip(x.chunk(3), dy.chunk(3), banks["merged"].pairs, strict=True):
        x_, A, B = (t.detach().double().requires_grad_() for t in (x_, A, B))
        y = linear.double()(x_) + gamma * (x_ @ A.mT) @ B.mT
        y.backward(dy_.double())
        exact.append((y.detach(), x_.grad, A.grad, B.grad))
    linear.float()
    reference = [torch.cat([e[i] for e in exact]) for i in (0, 1)]
    reference += [grad for e in exact for grad in e[2:]]
    for bank in banks.values():
        for found, expected in zip(passes(bank, x, dy), reference, strict=True):
            torch.testing.assert_close(
                found.double(), expected, rtol=2e-5, atol=2e-5 * float(expected.abs().max())
            )


# bf16.

WIDE = (512, 384)


def relative(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("rank", [4, 64])
@pytest.mark.parametrize("base", BASES)
def test_one_product_keeps_a_small_adapter_that_two_lose(base, rank):
    """The loss is ``1 - <d, D> / <d, d>``: d is the adapter's output, D what the layer's output
    changed by. Both forms are as close to float64, and so are their gradients. One product is as
    close as the exact sum rounded to bf16, also with a bias.
    """
    torch.manual_seed(0)
    linear = BASES[base](*WIDE).bfloat16().requires_grad_(False)
    x, dy = torch.randn(4, 256, WIDE[0]).bfloat16(), torch.randn(4, 256, WIDE[1]).bfloat16()
    exact = copy.deepcopy(linear).double()
    for size, two_lose in ((1e-4, 0.9), (1e-3, 0.4), (1e-2, -0.01)):
        for form in ("factored", "concatenated"):
            spec = AdapterSpec(rank, 0.3)
            bank = LoraBank(copy.deepcopy(linear), "layer", [spec], Contraction(form))
            assert bank.buckets[0].form == form
            bank.make_pairs()
            without = passes(bank, x, dy)[0]  # B = 0
            A, B, gamma = bank.pairs[0]
            nn.init.normal_(B)
            d = gamma * (x.float() @ A.mT @ B.mT).detach()
            B.data *= size * float(without.norm() / d.norm())
            factors = [t.detach().double().requires_grad_() for t in (x, A, B)]
            d = gamma * factors[0] @ factors[1].mT @ factors[2].mT
            y = exact(factors[0]) + d
            y.backward(dy.double())
            found, *grads = passes(bank, x, dy)
            changed = found.double() - without.double()
            lost = float(1 - (d * changed).sum().detach() / d.square().sum().detach())
            assert lost > two_lose if form == "factored" else abs(lost) < 0.03
            ideal = relative(y.detach().bfloat16(), y.detach())
            assert relative(found, y.detach()) < (1.02 if form == "concatenated" else 1.5) * ideal
            for grad, factor in zip(grads, factors, strict=True):
                assert relative(grad, factor.grad) < 4e-3


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_cell_of_a_fold_is_concatenated_as_alone(dropout):
    """Within the rounding of a product, whose sums a CPU orders by the number of rows."""
    torch.manual_seed(0)
    linear = nn.Linear(*WIDE).bfloat16().requires_grad_(False)
    x, dy = torch.randn(9, 7, WIDE[0]).bfloat16(), torch.randn(9, 7, WIDE[1]).bfloat16()
    specs = [replace(spec, dropout=dropout) for spec in SPECS]
    whole = LoraBank(linear, "layer", specs, Contraction("concatenated"))
    whole.make_pairs()
    for pair in whole.pairs:
        nn.init.normal_(pair.B_OR)
    y, dx, *grads = passes(whole, x, dy)
    for cell, spec in enumerate(specs):
        alone = LoraBank(linear, "layer", [spec], Contraction("auto"))
        alone.make_pairs()
        alone.pairs[0].B_OR.data.copy_(whole.pairs[cell].B_OR)
        of_cell = slice(3 * cell, 3 * cell + 3)
        expected = [y[of_cell], dx[of_cell], *grads[2 * cell : 2 * cell + 2]]
        for found, of_fold in zip(passes(alone, x[of_cell], dy[of_cell]), expected, strict=True):
            torch.testing.assert_close(found, of_fold, rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize(("d", "o"), [(576, 1536), (576, 576), (576, 192), (4096, 4096)])
@pytest.mark.parametrize("tokens", [64, 512, 1024, 4096, 65536])
def test_auto_switches_at_the_closed_form_thresholds(d, o, tokens):
    """The thresholds are the ranks at which two forms cost the same, solved by hand."""
    h = d * o / (d + o)
    for rank in (1, 4, 16, 64, 128, 256, 512, 1024, 2048):
        expected = "factored"
        if tokens > h and rank > FLOAT * (2 * h - tokens) / (tokens - h):
            expected = "merged" if rank > h / 2 * (tokens + FLOAT) / (tokens - h) else "mixed"
        assert Contraction("auto", tokens).choose(d, o, rank) == expected
