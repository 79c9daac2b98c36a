"""``model=tiny``: a random two-layer Llama and a tokenizer of bytes, for tests and for trying a command out.

Everything is made in memory and is the same on every machine: no download, no file.
"""

import hashlib
import json
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from study.models import quantised

MAX_LENGTH = 512

_SHAPE: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LENGTH,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": 257,
}
_SEED = 20231203
# Large enough that attention and logits (standard deviation 0.8) are not flat, small enough that the loss at the start
# is close to log(258) and training moves it smoothly.
_INIT_STD = 0.1


def config() -> LlamaConfig:
    """A Llama of 2 layers, 64 features, 4 heads (2 for keys and values) and 258 tokens."""
    return LlamaConfig(**_SHAPE)


def build() -> LlamaForCausalLM:
    """The model, in float32 on the CPU; torch's global random state is left as it was."""
    with torch.random.fork_rng(
        devices=[]
    ):  # transformers draws an init of its own, which is thrown away
        model = LlamaForCausalLM(config())
    # Drawn here, in the order of the names, so that the weights don't depend on how a version of transformers
    # initialises; only the norms have vectors, and theirs are ones.
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, _INIT_STD, generator=generator)
    return model


def load(device: torch.device, dtype: torch.dtype, quant_bits: int | None) -> LlamaForCausalLM:
    """The model as a checkpoint of it would be loaded: on ``device``, in ``dtype``, its linears in ``quant_bits``."""
    model = build()
    if quant_bits is not None:
        return quantised.rebuilt(model, device, dtype, quant_bits)
    for parameter in (
        model.parameters()
    ):  # not model.to(dtype): the rotary frequencies stay float32, as when loaded
        parameter.data = parameter.data.to(dtype)
    return model.to(device)


def fingerprint() -> str:
    """sha256 over what the weights are made from: the shape of the model, the seed and the scale of the init."""
    made_from = {"family": "llama", "shape": _SHAPE, "seed": _SEED, "init_std": _INIT_STD}
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte of UTF-8, then ``<eos>`` (256) and ``<pad>`` (257); it adds neither by itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(
        BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>", "<pad>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<eos>",
        pad_token="<pad>",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
