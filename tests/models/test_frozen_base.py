"""The frozen base: logits in two parts equal those of the whole; bad weights are errors."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from study.config import ModelConfig
from study.errors import StudyError
from study.models import describe, load_base
from study.models.card import block_linears

from .small import SHAPE, SMALL, gpt2, mixtral

CPU = torch.device("cpu")
CAPS = {"final_logit_softcapping": 0.05, "attn_logit_softcapping": 0.05}
GEMMA = {**CAPS, "head_dim": 8, "query_pre_attn_scalar": 8}

FAMILIES = {
    "llama, tied": transformers.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "gemma2": transformers.Gemma2Config(**SMALL, **GEMMA),
    "granite": transformers.GraniteConfig(**SMALL, logits_scaling=4.0),
}
"""Those that do more than a product after their last norm."""


@pytest.fixture
def loaded(save_family):
    return lambda config: load_base(ModelConfig("hf", str(save_family(config))), CPU, "float32")


@pytest.mark.parametrize("family", FAMILIES)
def test_two_parts_equal_the_whole(family, loaded):
    base = loaded(FAMILIES[family])
    model = base.model
    ids_BT = torch.randint(258, (3, 17), generator=torch.Generator().manual_seed(1))
    whole_BTV = model(input_ids=ids_BT).logits
    chosen = torch.zeros(3, 17, dtype=torch.bool)
    chosen[0, 3:9] = chosen[2, 16] = True
    parts_NV = base.logits(base.hidden_states(ids_BT)[chosen])
    torch.testing.assert_close(parts_NV, whole_BTV[chosen], rtol=1e-5, atol=1e-6)
    assert base.card.linears == block_linears(model)
    assert base.card.max_length == 64
    assert not model.training
    assert not model.config.use_cache
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["tiny", "hf"])
def test_bf16(name, tiny_folder):
    config = ModelConfig(name, str(tiny_folder) if name == "hf" else None)
    half, full = load_base(config, CPU, "bf16"), load_base(config, CPU, "float32")
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    rotary_frequencies = list(half.model.buffers())
    assert {buffer.dtype for buffer in rotary_frequencies} == {torch.float32}
    ids_BT = torch.arange(20)[None]
    logits_NV = half.logits(half.hidden_states(ids_BT)[0])
    assert logits_NV.dtype is torch.bfloat16
    torch.testing.assert_close(logits_NV.float(), full.model(ids_BT).logits[0], rtol=0, atol=0.06)


UP = "model.layers.1.mlp.up_proj.weight"
SPOILT = {
    rf"1 weights of LlamaForCausalLM are missing .*\('{UP}'\)": lambda w: w.pop(UP),
    r"another shape than config.json says \('model.norm.weight'\)": lambda w: w.update(
        {"model.norm.weight": torch.ones(63)}
    ),
    "NaN logits": lambda w: w["model.norm.weight"].fill_(float("nan")),
}


@pytest.mark.parametrize("says", SPOILT)
def test_weights_that_can_not_be_used(tiny_folder, says):
    weights = load_file(tiny_folder / "model.safetensors")
    SPOILT[says](weights)
    save_file(weights, tiny_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StudyError, match=says):
        load_base(ModelConfig("hf", str(tiny_folder)), CPU, "float32")


def test_a_model_that_attends_to_later_tokens(save_family):
    shape = {key: SMALL[key] for key in SMALL if key != "num_key_value_heads"}
    folder = str(save_family(transformers.BertConfig(**shape)))
    describe(ModelConfig("hf", folder))
    with pytest.raises(StudyError, match="attends to later tokens"):
        load_base(ModelConfig("hf", folder), CPU, "float32")


# A row of several sequences gives the hidden states that each sequence has alone.

SEPARATES = {
    "gemma3, sliding window": transformers.Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=6),
    "mixtral": mixtral(),
    "gpt2, learned positions": gpt2(),
}
MIXES = {
    "bloom, alibi": transformers.BloomConfig(**SHAPE, n_layer=2, n_head=4),
    "mamba, no attention": transformers.MambaConfig(**SHAPE, state_size=4),
    "lfm2, short convolutions": transformers.Lfm2Config(
        **SMALL, layer_types=["conv", "full_attention"]
    ),
}


@pytest.mark.parametrize("family", SEPARATES)
def test_each_sequence_of_a_row_is_as_alone(family, loaded):
    model = loaded(SEPARATES[family])
    assert model.separates_sequences
    lengths = [[9, 14, 7], [20, 6]]  # the second row ends with padding
    ids_BT = torch.randint(3, SHAPE["vocab_size"], (2, 30))
    row_BTd = model.hidden_states(ids_BT, lengths)
    for row, of_row in enumerate(lengths):
        start = 0
        for length in of_row:
            alone_Td = model.hidden_states(ids_BT[row : row + 1, start : start + length])[0]
            torch.testing.assert_close(row_BTd[row, start : start + length], alone_Td)
            start += length


@pytest.mark.parametrize("family", MIXES)
def test_other_models_are_recognised_and_stay_as_they_are(family, loaded):
    model = loaded(MIXES[family])
    assert not model.separates_sequences
    assert model.hidden_states(torch.arange(6).view(2, 3)).shape == (2, 3, 32)
