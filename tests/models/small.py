"""Small configurations of families of transformers."""

from typing import Any

import transformers
from transformers import PretrainedConfig

SHAPE: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": 257,
}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
SMALL = SHAPE | HEADS
GPT2: dict[str, Any] = {"vocab_size": 258, "n_layer": 2, "n_head": 4, "n_positions": 64}


def gpt2(features: int = 32) -> PretrainedConfig:
    return transformers.GPT2Config(**GPT2, n_embd=features, bos_token_id=None, eos_token_id=256)


def mixtral() -> PretrainedConfig:
    narrow = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    return transformers.MixtralConfig(**SMALL | narrow, num_local_experts=4)
