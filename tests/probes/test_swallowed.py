"""``swallowed``: the share of an adapter's output that a layer loses by rounding."""

from contextlib import nullcontext

import pandas as pd
import pytest
import torch
from torch import nn

from study.adapters.bank import AdapterSpec, LoraBank
from study.adapters.contraction import Contraction
from study.probes import NormProbe
from study.theory.rounding import swallowed

BF16 = torch.bfloat16
ULP = 2**-7
"""The spacing of bf16 between 1 and 2."""
OUT = [ULP / 4, 3 * ULP / 4, ULP]
"""Outputs of an adapter that become 0, ULP and ULP when they are added to 1."""
LOST = 1 - (3 / 4 + 1) / (1 / 16 + 9 / 16 + 1)
TOKENS, D = 4000, 64


def bank_of(W_OD, A_RD, *B_OR, form="factored"):
    base = nn.Linear(*W_OD.mT.shape, bias=False, dtype=W_OD.dtype).requires_grad_(False)
    base.weight.data.copy_(W_OD)
    specs = [AdapterSpec(len(A_RD), 1.0, seed=n) for n in range(len(B_OR))]
    bank = LoraBank(base, "layer", specs, Contraction(form))
    bank.make_pairs()
    for pair, B in zip(bank.pairs, B_OR, strict=True):
        pair.A_RD.data.copy_(A_RD)
        pair.B_OR.data.copy_(B)
    return bank


def peft_of(W_OD, A_RD, B_OR, dtype):
    peft = pytest.importorskip("peft")
    base = nn.Sequential(nn.Linear(*W_OD.mT.shape, bias=False, dtype=W_OD.dtype))
    base[0].weight.data.copy_(W_OD)
    rank = len(A_RD)
    lora = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"])
    model = peft.get_peft_model(base, lora, autocast_adapter_dtype=False)
    for name, factor in (("lora_A", A_RD), ("lora_B", B_OR)):
        linear = getattr(model.base_model.model[0], name)["default"].to(dtype)
        linear.weight.data.copy_(factor)
    return model


def measured(model, *inputs, tokens=TOKENS, **more):
    """The adapter's output of each cell after a pass for each of ``inputs``."""
    probe = NormProbe(model, sites=["adapter_out", "layer_out"], tokens=tokens, **more)
    for x in inputs:
        with probe.watch(), torch.no_grad():
            model(x)
    tables = pd.concat(probe.collect(0))
    return tables[tables["site"] == "adapter_out"]


WAYS = {
    "ours": lambda W, A, B: (bank_of(W.to(BF16), A, B), False),
    "PEFT, bf16 base": lambda W, A, B: (peft_of(W.to(BF16), A, B, torch.float32), False),
    "PEFT, autocast": lambda W, A, B: (peft_of(W, A, B, torch.float32), True),
    "PEFT, all bf16": lambda W, A, B: (peft_of(W.to(BF16), A, B, BF16), False),
}
"""The model, and whether it runs under autocast."""


@pytest.mark.parametrize("way", WAYS)
def test_a_loss_that_is_known_exactly(way):
    """Three outputs of 1 each, of one token; a second micro-batch, in which d is twice as large."""
    B_OR = torch.tensor(OUT)[:, None]
    model, is_autocast = WAYS[way](torch.ones(3, 1), torch.ones(1, 1), B_OR)
    dtype = torch.float32 if is_autocast else BF16
    x = torch.ones(1, 5, 1, dtype=dtype)
    with torch.autocast("cpu", BF16) if is_autocast else nullcontext():
        (share,) = measured(model, x)["swallowed"]
        assert share == pytest.approx(LOST, abs=1e-6)
        # All is multiplied by 2, also the spacing. The share does not change.
        (share,) = measured(model, x, 2 * x, tokens=2)["swallowed"]
    assert share == pytest.approx(LOST, abs=1e-6)


def test_it_is_missing_without_a_loss_or_an_output():
    ones, x = torch.ones(1, 1), torch.ones(2, 5, 1)
    assert measured(bank_of(ones, ones, ones, ones), x)["swallowed"].isna().all()
    bank, x = bank_of(ones.to(BF16), ones, ULP * ones, 0 * ones), x.to(BF16)
    shares = measured(bank, x)["swallowed"].tolist()
    assert shares == pytest.approx([0.0, float("nan")], nan_ok=True)
    assert "swallowed" not in measured(bank, x, stats=["rms"])


@pytest.mark.parametrize("size", [3e-4, 1e-3, 4e-3, 2e-2])
def test_gaussian_outputs_lose_what_theory_says(size):
    """The base reads one half of the inputs and the adapter the other: independent outputs."""
    stream = torch.Generator().manual_seed(0)
    W_OO, _ = torch.linalg.qr(torch.randn(D, D, generator=stream))
    x = torch.randn(1, TOKENS, 2 * D, generator=stream).to(BF16)
    one, zero = torch.eye(D), torch.zeros(D, D)
    factors = torch.cat([W_OO, zero], 1).to(BF16), torch.cat([zero, one], 1), size * one
    for form, expected in (("factored", float(swallowed(1.0, size))), ("concatenated", 0.0)):
        (share,) = measured(bank_of(*factors, form=form), x)["swallowed"]
        assert share == pytest.approx(expected, abs=0.01), form
