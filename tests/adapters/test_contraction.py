"""Contractions: gradients against numerical ones, values against float64, choice of a form."""

from itertools import permutations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from study.adapters import AdapterSpec, Contraction, LoraBank, merged_once
from study.adapters.bank import Forms
from study.adapters.contraction import (
    FLOAT,
    FORMS,
    Factored,
    Merged,
    Mixed,
    adapter_flops,
    factored,
    merged,
    outer,
)

NO_CUDA, WHY = not torch.cuda.is_available(), "no CUDA device"
K, N, D, O, R = 2, 5, 4, 6, 3  # noqa: E741
GAMMA_K11 = torch.tensor([0.5, 3.0], dtype=torch.float64).view(K, 1, 1)


def operands(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in shapes]


FACTORED_SHAPES = ((K, N, O), (K, N, D), (K, R, D), (K, O, R))
MERGED_SHAPES = ((K, R, D), (K, O, R))


def test_gradients_agree_with_numerical_ones() -> None:
    assert torch.autograd.gradcheck(
        lambda *a: Factored.apply(*a, GAMMA_K11), operands(torch.float64, *FACTORED_SHAPES)
    )
    W = torch.randn(O, D, dtype=torch.float64)

    def mixed_with_its_weight(x: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        return Mixed.apply(x, (W + GAMMA_K11 * B @ A).detach(), A, B, GAMMA_K11)

    assert torch.autograd.gradcheck(
        mixed_with_its_weight, operands(torch.float64, *FACTORED_SHAPES[1:])
    )
    assert torch.autograd.gradcheck(
        lambda *a: Merged.apply(W, *a, GAMMA_K11, None), operands(torch.float64, *MERGED_SHAPES)
    )


def test_values_follow_the_formula() -> None:
    y, x, A, B = operands(torch.float64, *FACTORED_SHAPES)
    torch.testing.assert_close(factored(y, x, A, B, GAMMA_K11), y + GAMMA_K11 * (x @ A.mT) @ B.mT)
    W = torch.randn(O, D, dtype=torch.float64)
    torch.testing.assert_close(merged(W, A, B, GAMMA_K11), W + GAMMA_K11 * B @ A)


def test_gradients_come_in_the_parameters_layout_and_precision() -> None:
    y, x, A, B = operands(torch.float32, *FACTORED_SHAPES)
    half = [tensor.detach().bfloat16().requires_grad_() for tensor in (y, x)]
    out = factored(*half, A, B, torch.ones(K, 1, 1))
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    W = torch.randn(O, D)
    A2, B2 = operands(torch.float32, *MERGED_SHAPES)
    torch.bmm(x.detach(), merged(W, A2, B2, torch.ones(K, 1, 1)).mT).sum().backward()
    for parameter in (A, B, A2, B2):
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.is_contiguous()


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(NO_CUDA, reason=WHY)])],
)
def test_a_factors_gradient_is_as_precise_as_it_says(device: str) -> None:
    """bf16 has 8 bits: rounding changes a number by up to 2^-9, and by 1.7e-3 rms."""
    torch.manual_seed(0)
    dz, x = (torch.randn(2, 512, width, device=device) for width in (8, 48))
    for u, v in ((dz, x), (x, dz)):
        for dtype, error in (
            (torch.float32, 1e-6),
            (torch.bfloat16, 1e-6 if device == "cuda" else 2e-3),
        ):
            halves = u.to(dtype), v.to(dtype)
            exact = halves[0].double().mT @ halves[1].double()
            found = outer(*halves)
            assert found.dtype == torch.float32
            assert float((found - exact).norm() / exact.norm()) < error


# Banks in every form.

DIMS = (24, 40)
# torch does not count the in-place form of baddbmm. a and b are shapes.
IN_PLACE = {torch.ops.aten.baddbmm_: lambda y, a, b, **_: 2 * a[0] * a[1] * a[2] * b[2]}
SPECS = [AdapterSpec(2, 0.5, seed=0), AdapterSpec(2, 3.0, seed=1), AdapterSpec(16, 1.5, seed=2)]
BASES = {
    "bias": lambda d, o: nn.Linear(d, o),
    "plain": lambda d, o: nn.Linear(d, o, bias=False),
    "conv1d": lambda d, o: Conv1D(o, d),
}


def trained_bank(base: nn.Module, contraction: Contraction, b_scale: float = 1.0) -> LoraBank:
    torch.manual_seed(1)
    bank = LoraBank(base.requires_grad_(False), "layer", SPECS, contraction)
    for bucket in bank.buckets:
        nn.init.normal_(bucket.B_kOR, std=b_scale)  # type: ignore[arg-type]
    bank.make_pairs()
    return bank


def passes(bank: LoraBank, x: torch.Tensor, dy: torch.Tensor) -> list[torch.Tensor]:
    """Output, gradient of the input, and those of every cell's A and B."""
    bank.zero_grad()
    x = x.detach().requires_grad_()
    y = bank(x)
    y.backward(dy)
    bank.bind_grads()
    assert x.grad is not None
    grads = [weight.grad for pair in bank.pairs for weight in pair[:2]]
    return [y.detach(), x.grad, *(g.clone() for g in grads if g is not None)]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("b_scale", [1.0, 1e-3])
def test_every_form_is_the_exact_product_within_rounding(base: str, b_scale: float) -> None:
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


@pytest.mark.parametrize("form", ["mixed", "merged"])
def test_a_small_delta_is_not_lost_in_the_merged_weight(form: str) -> None:
    """At |delta|/|W| = 1e-4 the adapter's output keeps about three digits."""
    d, o = DIMS
    torch.manual_seed(0)
    linear = nn.Linear(d, o, bias=False)
    x = torch.randn(9, 5, d)
    bank = trained_bank(linear, Contraction(form), b_scale=1e-5)
    added = bank(x).detach() - linear(x)
    wanted = trained_bank(linear, Contraction("factored"), b_scale=1e-5)(x).detach() - linear(x)
    assert float((added - wanted).norm() / wanted.norm()) < 2e-2


@pytest.mark.parametrize("form", ["mixed", "merged"])
def test_merging_once_a_step_equals_merging_in_each_micro_batch(form: str) -> None:
    d, o = DIMS
    linear = nn.Linear(d, o)
    batches = [
        (torch.randn(len(SPECS) * 3, 7, d), torch.randn(len(SPECS) * 3, 7, o)) for _ in range(3)
    ]

    def gradients(bank: LoraBank) -> list[torch.Tensor]:
        bank.bind_grads()
        return [
            weight.grad.clone()
            for pair in bank.pairs
            for weight in pair[:2]
            if weight.grad is not None
        ]

    each, once = (trained_bank(linear, Contraction(form)) for _ in range(2))
    for x, dy in batches:
        each(x).backward(dy)
    with merged_once([once]):
        outputs = [once(x) for x, _ in batches]
        assert outputs[0].grad_fn is not None
        for y, (_, dy) in zip(outputs, batches, strict=True):
            y.backward(dy)
        kept = [bucket._kept for bucket in once.buckets]
        assert all(kept), "the merged weight is kept after the first pass"
    for a, b in zip(gradients(each), gradients(once), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert all(bucket._kept is None for bucket in once.buckets)


def test_a_linear_that_cannot_be_merged_is_factored() -> None:
    class Odd(nn.Linear):
        pass

    merged_by_name = Contraction("merged")
    dropped = [AdapterSpec(2, 1.0, dropout=0.1)]
    for base, specs in (
        (nn.Linear(*DIMS), dropped),
        (Odd(*DIMS), SPECS),
        (nn.Linear(*DIMS, dtype=torch.bfloat16), SPECS),
    ):
        assert {b.form for b in LoraBank(base, "layer", specs, merged_by_name).buckets} == {
            "factored"
        }


@pytest.mark.parametrize(("d", "o"), [(576, 1536), (576, 576), (576, 192), (4096, 4096)])
@pytest.mark.parametrize("tokens", [64, 512, 1024, 4096, 65536])
def test_auto_switches_at_the_closed_form_thresholds(d: int, o: int, tokens: int) -> None:
    """The thresholds are the ranks at which two forms cost the same, solved by hand."""
    h = d * o / (d + o)
    for rank in (1, 4, 16, 64, 128, 256, 512, 1024, 2048):
        expected = "factored"
        if tokens > h and rank > FLOAT * (2 * h - tokens) / (tokens - h):
            expected = "merged" if rank > h / 2 * (tokens + FLOAT) / (tokens - h) else "mixed"
        assert Contraction("auto", tokens).choose(d, o, rank) == expected


def test_flops_agree_with_torchs_counter() -> None:
    """Forward and backward, without the frozen product."""
    d, o, rank, tokens = 24, 40, 8, 64
    linear = nn.Linear(d, o, bias=False).requires_grad_(False)
    for form in FORMS:
        bank = LoraBank(linear, "layer", [AdapterSpec(rank, 1.0)], Contraction(form))
        with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
            bank(torch.randn(1, tokens, d, requires_grad=True)).sum().backward()
        assert counter.get_total_flops() - 4 * tokens * d * o == adapter_flops(
            form, tokens, d, o, rank
        )


def test_a_faster_form_is_chosen_earlier() -> None:
    at_par = Contraction("auto", 1024)
    fast = Contraction("auto", 1024, merged_rate=2.0)
    ranks = [2**i for i in range(12)]
    first = [next(r for r in ranks if c.choose(576, 1536, r) == "merged") for c in (at_par, fast)]
    assert first[1] < first[0]
    assert all(
        fast.choose(576, 1536, r) == "merged"
        for r in ranks
        if at_par.choose(576, 1536, r) == "merged"
    )


@pytest.mark.parametrize("forms", list(permutations(FORMS, 2)), ids="-".join)
def test_a_bank_may_have_several_forms(forms: tuple[str, str]) -> None:
    """Two ranks in different forms give the same results as two factored ones."""
    d, o = DIMS
    linear = nn.Linear(d, o)
    bank = trained_bank(linear, Contraction())
    for bucket, form in zip(bank.buckets, forms, strict=True):
        bucket.forms = Forms(form, form)  # type: ignore[assignment]
    x, dy = torch.randn(len(SPECS) * 3, 7, d), torch.randn(len(SPECS) * 3, 7, o)
    for found, expected in zip(
        passes(bank, x, dy), passes(trained_bank(linear, Contraction()), x, dy), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
