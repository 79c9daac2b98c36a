"""Quantised bases against bitsandbytes: the same weights, and the same function in every pass."""

import math

import bitsandbytes
import pytest
import torch
from torch import nn

from study.adapters import dense_weight
from study.config import ModelConfig
from study.errors import StudyError
from study.models import describe, load_base, quantised, tiny
from tests.trained import series, trained

from .small import gpt2

CPU = torch.device("cpu")
BITS = (8, 4)
LINEARS = {8: bitsandbytes.nn.Linear8bitLt, 4: bitsandbytes.nn.Linear4bit}
ERROR = {8: 0.01, 4: 0.11}
"""Relative error of a weight."""


@pytest.fixture(scope="module")
def bases():
    return {bits: load_base(ModelConfig("tiny", quant_bits=bits), CPU, "float32") for bits in BITS}


def dense(linear):
    """A packed weight, dequantised by bitsandbytes' own functions."""
    data, of = linear.weight.data, bitsandbytes.functional
    if isinstance(linear, bitsandbytes.nn.Linear4bit):
        return of.dequantize_4bit(data, linear.weight.quant_state).float()
    scale = linear.state.SCB if linear.state.SCB is not None else linear.weight.SCB
    return of.int8_vectorwise_dequant(data, scale).float()


@pytest.mark.parametrize("bits", BITS)
def test_block_linears_are_quantised_and_nothing_else(bases, bits):
    base, plain = bases[bits], tiny.build()
    assert base.card.linears == describe(ModelConfig("tiny")).linears
    for path, module in base.model.named_modules():
        original = plain.get_submodule(path)
        if path in base.card.linears:
            assert isinstance(module, LINEARS[bits])
            assert (module.out_features, module.in_features) == original.weight.shape
            assert dense_weight(module) is None
            error = (dense(module) - original.weight).norm() / original.weight.norm()
            assert 0 < error < ERROR[bits]
        elif isinstance(module, nn.Linear | nn.Embedding):
            assert module.weight.dtype is torch.float32
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


@pytest.mark.parametrize("bits", BITS)
def test_every_pass_multiplies_by_the_dequantised_weight(bases, bits):
    """With and without gradients, with one token and with many."""
    model, reference = bases[bits].model, tiny.build()
    for path in bases[bits].card.linears:
        reference.get_submodule(path).weight.data = dense(model.get_submodule(path))
    linear, plain = (
        each.get_submodule("model.layers.0.mlp.up_proj") for each in (model, reference)
    )
    for tokens in (1, 40):
        x = torch.randn(2, tokens, 64, generator=torch.Generator().manual_seed(tokens))
        with torch.no_grad():
            torch.testing.assert_close(linear(x), plain(x), rtol=1e-4, atol=1e-5)
        x.requires_grad_()
        (given,) = torch.autograd.grad(linear(x).square().sum(), x)
        (wanted,) = torch.autograd.grad(plain(x).square().sum(), x)
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)
    ids = torch.arange(40)[None]
    torch.testing.assert_close(model(ids).logits, reference(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("bits", "precision"), [(8, "bf16"), (4, "float32")])
def test_a_fold_equals_its_cells_and_the_base_does_not_change(corpus, cell, bits, precision):
    common = [f"model.quant_bits={bits}", f"precision={precision}", "train.eval_every=1"]
    common += ["train.steps=2", "probes.steps=[1]", "probes.batch=[train,heldout]"]
    other = ["adapter.rank=4", "adapter.scaling=rslora", "seed=1"]
    cells = [cell("adapter.rank=2", *common), cell(*other, *common)]
    base = load_base(cells[0].model, CPU, precision)
    before = {name: weight.clone() for name, weight in base.model.named_parameters()}
    together, rel = trained(base, corpus, *cells), 1e-4 if precision == "float32" else 2e-2
    for config, folded in zip(cells, together, strict=True):
        [alone] = trained(base, corpus, config)
        for name in ("loss", "eval_loss", "grad_norm"):
            wanted = pytest.approx(series(alone, name), rel=rel, nan_ok=True)
            assert series(folded, name) == wanted, name
        table = alone[1].probes
        assert set(table["layer"]) == {*base.card.linears, "model"}
        assert math.isfinite(table["norm"].sum())
    assert series(together[1], "eval_loss")[2] < series(together[1], "eval_loss")[0]
    for name, weight in base.model.named_parameters():
        assert torch.equal(weight, before[name]), "an evaluation repacked a weight"


def test_a_checkpoint_is_quantised_while_it_is_read(save_family):
    folder = str(save_family(gpt2(64)))
    plain, packed = (
        load_base(ModelConfig("hf", folder, bits), CPU, "float32") for bits in (None, 8)
    )
    assert packed.card.linears == plain.card.linears
    for path in plain.card.linears:
        original = plain.model.get_submodule(path)
        linear = packed.model.get_submodule(path)
        weight = original.weight.T  # Conv1D stores it as [D, O]
        assert (linear.out_features, linear.in_features) == weight.shape
        assert (dense(linear) - weight).norm() < ERROR[8] * weight.norm()


@pytest.fixture(scope="module")
def held_in_4_bits(tmp_path_factory):
    """A checkpoint saved from a quantised model that computes in bf16."""
    folder = tmp_path_factory.mktemp("held")
    quantised.reloaded(tiny.build(), CPU, torch.bfloat16, 4).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def test_a_checkpoint_quantised_by_bitsandbytes_is_used_as_it_is(held_in_4_bits, bases):
    base = load_base(ModelConfig("hf", str(held_in_4_bits), 4), CPU, "float32")
    for path in base.card.linears:
        linear = base.model.get_submodule(path)
        assert linear.compute_dtype is torch.float32
        # Ours is quantised from float32, the checkpoint from the same weight rounded to bf16.
        ours = dense(bases[4].model.get_submodule(path))
        assert (dense(linear) - ours).norm() < 0.05 * ours.norm()
    with torch.no_grad():
        assert base.model(torch.arange(9)[None]).logits.dtype is torch.float32


def test_what_can_not_be_quantised_is_refused_before_loading(
    save_family, held_in_4_bits, monkeypatch
):
    narrow = str(save_family(gpt2(32)))
    says = r"rows of a multiple of 64 weights, but transformer.h.0.attn.c_attn of .* rows of 32"
    with pytest.raises(StudyError, match=says):
        describe(ModelConfig("hf", narrow, 4))
    assert describe(ModelConfig("hf", narrow, 8)).linears
    for bits in (None, 8):
        with pytest.raises(StudyError, match=r"has weights in 4 bits: use model.quant_bits=4"):
            describe(ModelConfig("hf", str(held_in_4_bits), bits))
    monkeypatch.setattr(quantised, "find_spec", lambda _: None)
    with pytest.raises(StudyError, match=r"needs bitsandbytes: pip install '\.\[quant\]'"):
        describe(ModelConfig("tiny", quant_bits=4))
