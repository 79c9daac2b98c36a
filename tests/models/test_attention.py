"""A row of several sequences gives the hidden states that each sequence has alone."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    LlamaConfig,
    MambaConfig,
    PreTrainedConfig,
)

from study.config import ModelConfig
from study.models import load_base, tiny
from study.models.base import FrozenBase

from .small import SHAPE, SMALL, gpt2, mixtral

VOCABULARY = SHAPE["vocab_size"]
SEPARATES = {
    "llama": LlamaConfig(**SMALL),
    "gemma3, sliding window": Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=6),
    "mixtral": mixtral(),
    "gpt2, learned positions": gpt2(),
}
MIXES = {
    "bloom, alibi": BloomConfig(**SHAPE, n_layer=2, n_head=4),
    "mamba, no attention": MambaConfig(**SHAPE, state_size=4),
}


def base(config: PreTrainedConfig, folder: str) -> FrozenBase:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return load_base(ModelConfig("hf", folder), torch.device("cpu"), "float32")


@pytest.mark.parametrize("family", SEPARATES)
def test_each_sequence_of_a_row_is_as_alone(family: str, tmp_path: Path) -> None:
    model = base(SEPARATES[family], str(tmp_path))
    assert model.separates_sequences
    lengths = [[9, 14, 7], [20, 6]]  # the second row ends with padding
    ids_BT = torch.randint(3, VOCABULARY, (2, 30))
    row_BTd = model.hidden_states(ids_BT, lengths)
    for row, of_row in enumerate(lengths):
        start = 0
        for length in of_row:
            alone_Td = model.hidden_states(ids_BT[row : row + 1, start : start + length])[0]
            torch.testing.assert_close(row_BTd[row, start : start + length], alone_Td)
            start += length


@pytest.mark.parametrize("family", MIXES)
def test_other_models_are_recognised_and_stay_as_they_are(family: str, tmp_path: Path) -> None:
    model = base(MIXES[family], str(tmp_path))
    assert not model.separates_sequences
    assert model.hidden_states(torch.arange(6).view(2, 3)).shape == (2, 3, 32)
