"""The frozen base: logits in two parts equal those of the whole; bad weights are errors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig

from study.config import ModelConfig
from study.errors import StudyError
from study.models import describe, load_base
from study.models.anatomy import block_linears

CPU = torch.device("cpu")

SMALL: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": 257,
}
SMALL_GPT2 = {
    "vocab_size": 258,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "eos_token_id": 256,
}
SMALL_OPT = {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 16}
CAPPED = {
    "head_dim": 8,
    "final_logit_softcapping": 0.05,
    "attn_logit_softcapping": 0.05,
    "query_pre_attn_scalar": 8,
}

FAMILIES: dict[str, PretrainedConfig] = {
    "llama": transformers.LlamaConfig(**SMALL),
    "llama, tied": transformers.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen2": transformers.Qwen2Config(**SMALL),
    "mistral": transformers.MistralConfig(**SMALL, head_dim=8),
    "mixtral": transformers.MixtralConfig(**SMALL, num_local_experts=4),
    "gemma2": transformers.Gemma2Config(**SMALL, **CAPPED),
    "gpt2": transformers.GPT2Config(**SMALL_GPT2, bos_token_id=None),
    "gpt_neox": transformers.GPTNeoXConfig(**SMALL),
    "phi": transformers.PhiConfig(**SMALL),
    "granite": transformers.GraniteConfig(**SMALL, logits_scaling=4.0),
    "cohere": transformers.CohereConfig(**SMALL, logit_scale=0.25),
    "opt": transformers.OPTConfig(**SMALL_OPT),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_two_parts_equal_the_whole(
    family: str, save_family: Callable[[PretrainedConfig], Path]
) -> None:
    config = ModelConfig("hf", str(save_family(FAMILIES[family])))
    base = load_base(config, CPU, "float32")
    ids_BT = torch.randint(258, (3, 17), generator=torch.Generator().manual_seed(1))
    whole_BTV = base.model(input_ids=ids_BT).logits
    hidden_BTd = base.hidden_states(ids_BT)
    chosen = torch.zeros(3, 17, dtype=torch.bool)
    chosen[0, 3:9] = chosen[2, 16] = True
    torch.testing.assert_close(
        base.logits(hidden_BTd[chosen]), whole_BTV[chosen], rtol=1e-5, atol=1e-6
    )
    assert base.card.linears == block_linears(base.model)
    assert base.card.max_length == 64
    assert not base.model.training
    assert not base.model.config.use_cache  # type: ignore[union-attr]
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_gradients_flow_through_both_parts() -> None:
    """The gradient of a change in a layer's output, as an adapter makes, is the same both ways."""
    base = load_base(ModelConfig("tiny"), CPU, "float32")
    ids_BT = torch.arange(30).view(2, 15)
    shift = torch.zeros(64, requires_grad=True)
    handle = base.model.get_submodule("model.layers.0.self_attn.o_proj").register_forward_hook(
        lambda *io: io[2] + shift
    )
    (parts,) = torch.autograd.grad(
        base.logits(base.hidden_states(ids_BT).flatten(0, 1)).logsumexp(-1).sum(), shift
    )
    (whole,) = torch.autograd.grad(base.model(input_ids=ids_BT).logits.logsumexp(-1).sum(), shift)
    handle.remove()
    assert float(whole.abs().max()) > 0
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny", "hf"])
def test_bf16(name: str, tiny_folder: Path) -> None:
    config = ModelConfig(name, str(tiny_folder) if name == "hf" else None)
    half, full = load_base(config, CPU, "bf16"), load_base(config, CPU, "float32")
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    rotary_frequencies = list(half.model.buffers())
    assert {buffer.dtype for buffer in rotary_frequencies} == {torch.float32}
    ids_BT = torch.arange(20)[None]
    logits_NV = half.logits(half.hidden_states(ids_BT)[0])
    assert logits_NV.dtype is torch.bfloat16
    torch.testing.assert_close(logits_NV.float(), full.model(ids_BT).logits[0], rtol=0, atol=0.06)


def test_a_missing_weight_is_an_error(tiny_folder: Path) -> None:
    weights = load_file(tiny_folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tiny_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        StudyError, match=r"lacks 1 weights of LlamaForCausalLM \(model.layers.1.mlp.up_proj.weight"
    ):
        load_base(ModelConfig("hf", str(tiny_folder)), CPU, "float32")


def test_a_weight_of_another_shape(tiny_folder: Path) -> None:
    weights = load_file(tiny_folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(63)
    save_file(weights, tiny_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StudyError, match=r"'model\.norm\.weight' has shape \[63\]"):
        load_base(ModelConfig("hf", str(tiny_folder)), CPU, "float32")


def test_nan_weights(tiny_folder: Path) -> None:
    weights = load_file(tiny_folder / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, tiny_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StudyError, match="NaN logits"):
        load_base(ModelConfig("hf", str(tiny_folder)), CPU, "float32")


def test_a_model_that_attends_to_later_tokens(
    save_family: Callable[[PretrainedConfig], Path],
) -> None:
    config = transformers.BertConfig(
        **{key: SMALL[key] for key in SMALL if key != "num_key_value_heads"}
    )
    folder = str(save_family(config))
    describe(ModelConfig("hf", folder))
    with pytest.raises(StudyError, match="attends to later tokens"):
        load_base(ModelConfig("hf", folder), CPU, "float32")
