"""``model=tiny``: a random two-layer Llama and a byte tokenizer, for tests and first tries.

Both are made in memory, without files, and are the same on every machine. ``model.width`` sets the
number of features of the hidden states. Entries of hidden states, attention and logits have the
same scale at every width, so that only sums over features change with it.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from study.models import quantised

MAX_LENGTH = 512
WIDTH = 64
WIDTH_STEP = 8
"""A width is a multiple of this: the 4 heads have an even number of features each."""

_SHAPE: dict[str, Any] = {
    "vocab_size": 258,
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
# Large enough that attention and logits are not flat (logits have standard deviation 0.8), small
# enough that the initial loss is close to log(258) and training changes it smoothly.
_INIT_STD = 0.1
_EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class TinyModel:
    name: str
    width: int = WIDTH
    note: str = "random weights"
    where: None = None

    @property
    def named(self) -> str:
        return f"model={self.name}"

    def fingerprint(self) -> str:
        """sha256 of everything that determines the weights: shape, seed and scale of the init."""
        made_from = {"family": "llama", "shape": _shape(self.width), "seed": _SEED}
        made_from["init_std"] = _INIT_STD
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()

    def config(self, quant_bits: int | None = None) -> LlamaConfig:
        return config(self.width)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return tokenizer()

    def load(self, device: torch.device, dtype: torch.dtype, quant_bits: int | None) -> Any:
        model = build(self.width)
        if quant_bits is not None:
            return quantised.reloaded(model, device, dtype, quant_bits)
        # As from a checkpoint, the rotary frequencies, which are buffers, stay in float32.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        return model.to(device)


def config(width: int = WIDTH) -> LlamaConfig:
    return LlamaConfig(**_shape(width))


def _shape(width: int) -> dict[str, Any]:
    return {**_SHAPE, "hidden_size": width, "intermediate_size": 2 * width}


def build(width: int = WIDTH) -> LlamaForCausalLM:
    """The model, in float32 on the CPU. torch's global random state is unchanged."""
    with torch.random.fork_rng(devices=[]):  # transformers draws an init, which is overwritten
        model = LlamaForCausalLM(config(width))
    # Weights are drawn here, ordered by name, so that they don't depend on the init of a version of
    # transformers. The only vectors are the norms' weights, which are ones.
    generator = torch.Generator().manual_seed(_SEED)
    of_linear = _INIT_STD * math.sqrt(WIDTH / width)  # a product sums over features
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                std = _INIT_STD if name == _EMBEDDING else of_linear
                parameter.normal_(0.0, std, generator=generator)
    return model


def tokenizer(alphabet: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """One token per byte of UTF-8, then ``<eos>`` (256) and ``<pad>`` (257). It adds neither.
    ``alphabet``: the symbols of the 256 bytes in the order of their tokens."""
    alphabet = alphabet or sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
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
