"""Quantised bases against bitsandbytes: the same weights, and the same function in every pass."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig

from study.adapters import dense_weight, features
from study.config import CellConfig, ModelConfig
from study.data import Corpus
from study.errors import StudyError
from study.models import FrozenBase, describe, load_base, quantised, tiny
from study.training.loop import CellStep, train
from study.training.run import Run

CPU = torch.device("cpu")
BITS = (8, 4)
LINEARS = {8: bitsandbytes.nn.Linear8bitLt, 4: bitsandbytes.nn.Linear4bit}


@pytest.fixture(scope="module")
def bases() -> dict[int, FrozenBase]:
    return {bits: load_base(ModelConfig("tiny", quant_bits=bits), CPU, "float32") for bits in BITS}


def dense(linear: nn.Module) -> Tensor:
    """A packed weight, dequantised by bitsandbytes' own functions."""
    if isinstance(linear, bitsandbytes.nn.Linear4bit):
        return bitsandbytes.functional.dequantize_4bit(
            linear.weight.data, linear.weight.quant_state
        ).float()
    scale = linear.state.SCB if linear.state.SCB is not None else linear.weight.SCB
    return bitsandbytes.functional.int8_vectorwise_dequant(linear.weight.data, scale).float()


@pytest.mark.parametrize("bits", BITS)
def test_block_linears_are_quantised_and_nothing_else(
    bases: dict[int, FrozenBase], bits: int
) -> None:
    base, plain = bases[bits], tiny.build()
    assert base.card.linears == describe(ModelConfig("tiny")).linears
    for path, module in base.model.named_modules():
        if path in base.card.linears:
            original = plain.get_submodule(path)
            assert isinstance(module, LINEARS[bits])
            assert features(module) == features(original)
            assert dense_weight(module) is None
            assert dense_weight(original) is not None
            error = (dense(module) - original.weight).norm() / original.weight.norm()
            assert 0 < error < {8: 0.01, 4: 0.11}[bits]
        elif isinstance(module, nn.Linear | nn.Embedding):
            assert module.weight.dtype is torch.float32
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert base.model.num_parameters() == plain.num_parameters()  # type: ignore[operator]
    packed = sum(
        p.numel() * p.element_size()
        for name, p in base.model.named_parameters()
        if ".layers." in name
    )
    assert (
        packed
        < sum(p.numel() * 4 for name, p in plain.named_parameters() if ".layers." in name)
        * bits
        / 28
    )


@pytest.mark.parametrize("bits", BITS)
def test_every_pass_multiplies_by_the_dequantised_weight(
    bases: dict[int, FrozenBase], bits: int
) -> None:
    """With and without gradients, with one token and with many."""
    reference = tiny.build()
    for path in bases[bits].card.linears:
        reference.get_submodule(path).weight.data = dense(bases[bits].model.get_submodule(path))
    linear = bases[bits].model.get_submodule("model.layers.0.mlp.up_proj")
    plain = reference.get_submodule("model.layers.0.mlp.up_proj")
    for tokens in (1, 40):
        x = torch.randn(2, tokens, 64, generator=torch.Generator().manual_seed(tokens))
        with torch.no_grad():
            torch.testing.assert_close(linear(x), plain(x), rtol=1e-4, atol=1e-5)
        x.requires_grad_()
        (given,) = torch.autograd.grad(linear(x).square().sum(), x)
        (wanted,) = torch.autograd.grad(plain(x).square().sum(), x)
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)
    ids = torch.arange(40)[None]
    torch.testing.assert_close(
        bases[bits].model(ids).logits, reference(ids).logits, rtol=1e-4, atol=1e-4
    )


def run(base: FrozenBase, corpus: Corpus, cells: list[CellConfig]) -> list[list[CellStep]]:
    return [
        list(steps)
        for steps in zip(
            *train(base, corpus, [Run.of(config, corpus, base.device) for config in cells]),
            strict=True,
        )
    ]  # type: ignore[arg-type]


def series(steps: list[CellStep], name: str) -> list[float]:
    return [step.metrics.get(name, math.nan) for step in steps]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("bits", BITS)
def test_a_fold_equals_its_cells_and_the_base_does_not_change(
    corpus: Corpus, cell: Callable[..., CellConfig], bits: int, precision: str
) -> None:
    common = (
        f"model.quant_bits={bits}",
        f"precision={precision}",
        "train.eval_every=1",
        "probes.batch=[train,heldout]",
    )
    common += ("train.steps=2", "probes.steps=[1]")
    cells = [
        cell("adapter.rank=2", *common),
        cell("adapter.rank=4", "adapter.scaling=rslora", "seed=1", *common),
    ]
    base = load_base(cells[0].model, CPU, precision)
    before = {
        path: base.model.get_submodule(path).weight.data.clone() for path in base.card.linears
    }
    together = run(base, corpus, cells)
    for config, folded in zip(cells, together, strict=True):
        [alone] = run(base, corpus, [config])
        rel = 1e-4 if precision == "float32" else 2e-2
        for name in ("loss", "eval_loss", "grad_norm"):
            assert series(folded, name) == pytest.approx(
                series(alone, name), rel=rel, nan_ok=True
            ), name
        table = alone[1].probes
        assert table is not None
        assert set(table["layer"]) == {*base.card.linears, "model"}
        assert math.isfinite(table["norm"].sum())
    assert series(together[1], "eval_loss")[2] < series(together[1], "eval_loss")[0]
    for path, weight in before.items():
        assert torch.equal(base.model.get_submodule(path).weight.data, weight), (
            "an evaluation repacked a weight"
        )


def test_the_card_names_the_bits() -> None:
    plain, eight, four = (describe(ModelConfig("tiny", quant_bits=bits)) for bits in (None, 8, 4))
    assert plain.fingerprint == tiny.TinyModel("tiny").fingerprint()
    assert (eight.fingerprint, four.fingerprint) == (
        f"{plain.fingerprint}+int8",
        f"{plain.fingerprint}+nf4",
    )
    assert four.note == "random weights, block linears in 4 bits by bitsandbytes"
    assert plain.note == "random weights"
    assert four.linears == plain.linears


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_checkpoint_is_quantised_while_it_is_read(
    save_family: Callable[[PretrainedConfig], Path], family: str, bits: int
) -> None:
    shape: dict[str, Any] = {"vocab_size": 258, "bos_token_id": None, "eos_token_id": 256}
    config = {
        "llama": transformers.LlamaConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            **shape,
        ),
        "gpt2": transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=64, **shape),
    }[family]
    folder = str(save_family(config))
    plain, packed = (
        load_base(ModelConfig("hf", folder, bits_), CPU, "float32") for bits_ in (None, bits)
    )
    assert packed.card.linears == plain.card.linears
    for path in plain.card.linears:
        original, linear = plain.model.get_submodule(path), packed.model.get_submodule(path)
        assert features(linear) == features(original)
        assert dense_weight(original) is not None
        assert dense_weight(linear) is None
        # Conv1D stores its weight as [D, O].
        weight = original.weight.T if family == "gpt2" else original.weight
        assert (dense(linear) - weight).norm() < {8: 0.01, 4: 0.11}[bits] * weight.norm()


def test_rows_that_are_not_a_multiple_of_a_block_are_refused_before_loading(
    save_family: Callable[[PretrainedConfig], Path],
) -> None:
    folder = str(
        save_family(
            transformers.GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=258, n_positions=64)
        )
    )
    with pytest.raises(
        StudyError,
        match=r"rows of a multiple of 64 weights, but transformer.h.0.attn.c_attn of .* rows of 32",
    ):
        describe(ModelConfig("hf", folder, 4))
    assert describe(ModelConfig("hf", folder, 8)).linears


@pytest.fixture(scope="module")
def held_in_4_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint saved from a quantised model that computes in bf16."""
    folder = tmp_path_factory.mktemp("held")
    quantised.reloaded(tiny.build(), CPU, torch.bfloat16, 4).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def test_a_checkpoint_quantised_by_bitsandbytes_is_used_as_it_is(
    held_in_4_bits: Path, bases: dict[int, FrozenBase]
) -> None:
    base = load_base(ModelConfig("hf", str(held_in_4_bits), 4), CPU, "float32")
    for path in base.card.linears:
        linear = base.model.get_submodule(path)
        assert linear.compute_dtype is torch.float32
        # Ours is quantised from float32, the checkpoint from the same weight rounded to bf16.
        ours = dense(bases[4].model.get_submodule(path))
        assert (dense(linear) - ours).norm() < 0.05 * ours.norm()
    with torch.no_grad():
        assert base.model(torch.arange(9)[None]).logits.dtype is torch.float32


@pytest.mark.parametrize(
    ("bits", "says"),
    [
        (None, "has weights in 4 bits, but model.quant_bits=null: use model.quant_bits=4"),
        (8, "has weights in 4 bits, but model.quant_bits=8: use model.quant_bits=4"),
    ],
)
def test_contradictory_bits(held_in_4_bits: Path, bits: int | None, says: str) -> None:
    with pytest.raises(StudyError) as caught:
        describe(ModelConfig("hf", str(held_in_4_bits), bits))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_bitsandbytes_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "find_spec", lambda _: None)
    with pytest.raises(StudyError, match=r"needs bitsandbytes: pip install '\.\[quant\]'"):
        describe(ModelConfig("tiny", quant_bits=4))
    assert describe(ModelConfig("tiny")).name == "tiny"
