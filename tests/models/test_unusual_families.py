"""Families whose blocks are not a Llama's: state spaces, routers, a head with its own scale.

``test_families.py`` compares folds and probes in the usual families. Here every family takes one
probed step, or says in one line why it can't.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from transformers import PretrainedConfig

from study.adapters import AdapterSpec, LoraPair, adapted, dense_weight
from study.config import CellConfig, ModelConfig
from study.data import Corpus
from study.errors import StudyError
from study.models import load_base
from study.training.loop import train
from study.training.run import Run

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
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
STATE = {"state_size": 8, "time_step_rank": 4}
HYBRID = {
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_ssm": 64,
    "mamba_n_groups": 1,
}
LLAMA4 = {"intermediate_size_mlp": 48, "num_local_experts": 4, "num_experts_per_tok": 1}

FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    # They multiply by the weight of dt_proj.
    "mamba": lambda: transformers.MambaConfig(**SMALL, **STATE),
    "falcon_mamba": lambda: transformers.FalconMambaConfig(**SMALL, **STATE),
    # Its router is a subclass of nn.Linear that returns a tuple.
    "phimoe": lambda: transformers.PhimoeConfig(**SMALL, **HEADS, num_local_experts=4),
    # It asks for the dtype of its router's weight.
    "hunyuan_v1_moe": lambda: transformers.HunYuanMoEV1Config(
        **SMALL, **HEADS, head_dim=8, num_experts=4, moe_topk=2
    ),
    # Its head reads a scale from the trunk.
    "falcon_h1": lambda: transformers.FalconH1Config(**SMALL, **HEADS, **HYBRID),
    # Its base_model_prefix names no child.
    "llama4_text": lambda: transformers.Llama4TextConfig(**SMALL, **HEADS, **LLAMA4, head_dim=8),
    # It calls its head a decoder.
    "modernbert-decoder": lambda: transformers.ModernBertDecoderConfig(
        **SMALL | {"bos_token_id": 1}, num_attention_heads=4, cls_token_id=1, sep_token_id=2
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_probed_step(
    family: str,
    save_family: Callable[[PretrainedConfig], Path],
    cell: Callable[..., CellConfig],
    corpus: Corpus,
) -> None:
    model = ModelConfig("hf", str(save_family(FAMILIES[family]())))
    base = load_base(model, CPU, "float32")
    config = cell("adapter.rank=2", "train.steps=1", "probes.steps=[0,1]", "train.eval_every=0")
    config = replace(config, model=model)
    steps: Any = list(train(base, corpus, [Run.of(config, corpus, base.device)]))
    [before], [after] = steps
    assert after.metrics["loss"] != before.metrics["loss"]
    probes = pd.concat([before.probes, after.probes])
    assert np.isfinite(probes["norm"]).all()
    moved = probes[(probes["step"] == 1) & (probes["site"] == "delta_w")]
    assert set(moved["layer"]) == set(base.card.targets)
    assert (moved["norm"] > 0).all(), "every adapter has a gradient"


def test_a_model_that_reads_a_weight_itself_gets_the_adapted_one(
    save_family: Callable[[PretrainedConfig], Path],
) -> None:
    """Mamba's logits are those of a Mamba whose weights are ``W + gamma B A``."""
    base = load_base(ModelConfig("hf", str(save_family(FAMILIES["mamba"]()))), CPU, "float32")
    model: Any = base.model
    stream = torch.Generator().manual_seed(0)
    start = {
        path: LoraPair(
            torch.randn(3, d, generator=stream) / 8, torch.randn(o, 3, generator=stream) / 8, 0.5
        )
        for path, (d, o) in zip(base.card.linears, base.card.shapes, strict=True)
    }
    ids_BT = torch.arange(20).view(2, 10)
    frozen_BTV = model(ids_BT).logits
    with adapted(model, base.card.linears, [AdapterSpec(3, 1.0, start=start)]), torch.no_grad():
        adapted_BTV = model(ids_BT).logits
    for path, (A_RD, B_OR, gamma) in start.items():
        W_OD = dense_weight(model.get_submodule(path))
        assert W_OD is not None
        W_OD.data += gamma * B_OR @ A_RD
    merged_BTV = model(ids_BT).logits
    assert (merged_BTV - frozen_BTV).abs().max() > 0.1
    torch.testing.assert_close(adapted_BTV, merged_BTV, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", [[AdapterSpec(2, 1.0)] * 2, [AdapterSpec(2, 1.0, dropout=0.1)]])
def test_a_weight_that_can_not_be_read_is_one_line(
    spec: list[AdapterSpec], save_family: Callable[[PretrainedConfig], Path]
) -> None:
    base = load_base(ModelConfig("hf", str(save_family(FAMILIES["mamba"]()))), CPU, "float32")
    with (
        adapted(base.model, base.card.linears, spec),
        pytest.raises(StudyError, match=r"reads the weight of .*dt_proj itself: leave it out"),
    ):
        base.hidden_states(torch.arange(20).view(2, 10))


def test_a_model_without_gradients_inside_is_one_line(
    save_family: Callable[[PretrainedConfig], Path],
) -> None:
    config = transformers.ReformerConfig(
        is_decoder=True,
        vocab_size=258,
        hidden_size=32,
        num_attention_heads=4,
        attention_head_size=8,
        feed_forward_size=48,
        max_position_embeddings=64,
        axial_pos_embds_dim=[16, 16],
        axial_pos_shape=[8, 8],
        eos_token_id=256,
        pad_token_id=257,
    )
    with pytest.raises(StudyError, match="passes no gradients to the layers inside it"):
        load_base(ModelConfig("hf", str(save_family(config))), CPU, "float32")
