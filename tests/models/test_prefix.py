"""Blocks below the first adapted one run once per batch, and results do not change."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
)

from study.config import ModelConfig
from study.models import FrozenBase, describe
from study.models.prefix import shared_prefix

Ids = torch.Tensor
SMALL = {"vocab_size": 64, "max_position_embeddings": 64}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        **SMALL,
    ),
    "gemma": GemmaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        **SMALL,
    ),
    "gpt2": GPT2Config(n_embd=16, n_layer=4, n_head=2, n_positions=64, vocab_size=64),
}


@pytest.fixture(params=CONFIGS)
def base(request: pytest.FixtureRequest) -> FrozenBase:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval().requires_grad_(False)
    return FrozenBase(model, describe(ModelConfig("tiny")))


def paths(base: FrozenBase, block: int) -> list[str]:
    return [
        n for n, m in base.model.named_modules() if f".{block}." in n and not list(m.children())
    ]


def counted(base: FrozenBase, block: int) -> Callable[[], int]:
    calls = []
    path = next(
        n for n, m in base.model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == 4
    )
    base.model.get_submodule(f"{path}.{block}").register_forward_hook(lambda *_: calls.append(1))
    return lambda: len(calls)


def test_a_known_batch_skips_the_blocks_below(base: FrozenBase) -> None:
    first, second = torch.arange(20).view(2, 10), torch.arange(5, 25).view(2, 10)
    plain = [base.hidden_states(ids) for ids in (first, second)]
    below, above = counted(base, 1), counted(base, 2)
    with shared_prefix(base, paths(base, 2) + paths(base, 3), 2**20) as prefix:
        assert prefix is not None
        for expected, ids in zip(plain * 3, [first, second] * 3, strict=True):
            assert torch.equal(base.hidden_states(ids), expected)
        assert (below(), above(), prefix.hits) == (2, 6, 4)
        base.model(input_ids=first)
        assert below() == 3, "only passes of hidden_states are cached"
    assert torch.equal(base.hidden_states(first), plain[0])
    assert below() == 4, "the base is restored"


def test_gradients_above_do_not_change(base: FrozenBase) -> None:
    ids = torch.arange(12).view(1, 12)
    late = base.model.get_submodule(
        next(p for p in paths(base, 2) if hasattr(base.model.get_submodule(p), "weight"))
    )
    weight = late.weight.requires_grad_()
    (expected,) = torch.autograd.grad(base.hidden_states(ids).square().sum(), weight)
    with shared_prefix(base, paths(base, 2), 2**20):
        for _ in range(2):
            (found,) = torch.autograd.grad(base.hidden_states(ids).square().sum(), weight)
            assert torch.equal(found, expected)


def test_an_output_beyond_the_limit_is_computed_again(base: FrozenBase) -> None:
    one, other = torch.arange(8).view(1, 8), torch.arange(8, 16).view(1, 8)
    below = counted(base, 0)
    with shared_prefix(base, paths(base, 1), 8 * 16 * 4) as prefix:
        assert prefix is not None
        for ids in (one, other, one, other):
            base.hidden_states(ids)
        assert prefix.used == 8 * 16 * 4
    assert below() == 3


def test_no_cache_if_the_first_block_is_adapted(base: FrozenBase) -> None:
    with shared_prefix(base, paths(base, 0) + paths(base, 3), 2**20) as prefix:
        assert prefix is None
