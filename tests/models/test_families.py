"""Families of transformers, tiny and random: adapted layers, folds and probes.

Each model is saved to a folder and loaded from it offline, as a user's own model is.
"""

import math
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from transformers import PretrainedConfig

from study.adapters import resolve_targets
from study.config import CellConfig
from study.data import Corpus
from study.models import FrozenBase, load_base
from study.training.loop import train
from study.training.run import Run
from study.vocabulary.quantities import MODEL_WIDE, UNIONS

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
HEAD = {"head_dim": 8}
SMALL_GPT2 = {
    "vocab_size": 258,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": None,
}
QKVO, GATED = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}

FAMILIES: dict[str, tuple[PretrainedConfig, set[str], set[str]]] = {
    "llama": (transformers.LlamaConfig(**SMALL), QKVO, GATED),
    "qwen2": (transformers.Qwen2Config(**SMALL), QKVO, GATED),
    "qwen3": (transformers.Qwen3Config(**SMALL, **HEAD), QKVO, GATED),
    "mistral": (transformers.MistralConfig(**SMALL, **HEAD), QKVO, GATED),
    "gemma2": (transformers.Gemma2Config(**SMALL, **HEAD, query_pre_attn_scalar=8), QKVO, GATED),
    "gemma3": (
        transformers.Gemma3TextConfig(**SMALL, **HEAD, query_pre_attn_scalar=8),
        QKVO,
        GATED,
    ),
    "gpt2": (
        transformers.GPT2Config(**SMALL_GPT2, eos_token_id=256),
        {"c_attn", "c_proj"},
        {"c_fc", "c_proj"},
    ),
    "phi": (
        transformers.PhiConfig(**SMALL),
        {"q_proj", "k_proj", "v_proj", "dense"},
        {"fc1", "fc2"},
    ),
    "phi3": (
        transformers.Phi3Config(**SMALL),
        {"qkv_proj", "o_proj"},
        {"gate_up_proj", "down_proj"},
    ),
}
"""A configuration, the linears of attention, and the linears of the MLP."""


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        socket.socket, "connect", lambda *_: pytest.fail("a folder needs no network")
    )


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cells(
    family: str, save_family: Callable[[PretrainedConfig], Path], cell: Callable[..., CellConfig]
) -> list[CellConfig]:
    folder = save_family(FAMILIES[family][0])
    common = (
        "model=hf",
        f"model.path={folder}",
        "train.steps=1",
        "probes.steps=[0,1]",
        "train.eval_every=0",
    )
    common += ("train.batch_size=2", "probes.stats=[all,r_align,r_back,rho]")
    return [
        cell("adapter.rank=2", *common),
        cell(
            "adapter.rank=5",
            "adapter.scaling=rslora",
            "optimizer=sgd",
            "optimizer.lr=0.1",
            "seed=1",
            *common,
        ),
    ]


def run(
    base: FrozenBase, corpus: Corpus, cells: list[CellConfig]
) -> tuple[list[pd.DataFrame], list[pd.DataFrame]]:
    """Each cell's metrics and probes."""
    steps: Any = train(base, corpus, [Run.of(config, corpus, base.device) for config in cells])
    of_cells = list(zip(*steps, strict=True))
    metrics = [pd.DataFrame([row.metrics for row in rows]) for rows in of_cells]
    probes = [pd.concat([row.probes for row in rows]) for rows in of_cells]
    return metrics, probes


def test_layers_are_found_a_fold_equals_its_cells_and_probes_are_complete(
    family: str, cells: list[CellConfig], corpus: Corpus
) -> None:
    base = load_base(cells[0].model, torch.device("cpu"), "float32")
    _, attention, mlp = FAMILIES[family]
    found = {half: resolve_targets(base.card.linears, half) for half in ("attention", "mlp")}
    kinds = {half: {path.rpartition(".")[2] for path in paths} for half, paths in found.items()}
    assert kinds == {"attention": attention, "mlp": mlp}
    assert sorted([*found["attention"], *found["mlp"]]) == sorted(base.card.linears)
    assert len(base.card.linears) == 2 * (len(attention) + len(mlp))

    metrics, probes = run(base, corpus, cells)
    for k, config in enumerate(cells):
        [alone], [measured] = run(base, corpus, [config])
        for name in ("loss", "grad_norm", "loss_after"):
            np.testing.assert_allclose(metrics[k][name], alone[name], rtol=1e-4, err_msg=name)
        both = probes[k].merge(measured, on=["step", "layer", "site"], validate="1:1")
        assert len(both) == len(probes[k]) == len(measured)
        big = both["norm_y"] > 1e-7
        np.testing.assert_allclose(both["norm_x"][big], both["norm_y"][big], rtol=1e-2)
        _check_whole(probes[k], base.card.linears)


def _check_whole(probes: pd.DataFrame, linears: tuple[str, ...]) -> None:
    """Every site has finite numbers for every layer, and the unions also for the whole model."""
    for step, rows in probes.groupby("step"):
        layers = rows.groupby("site", observed=True)["layer"].agg(set)
        updates = {"A_update", "B_update", "adapter_update"}
        sites = {
            "adapter_in",
            "adapter_out",
            "layer_out",
            "layer_out_grad",
            "adapter_in_grad",
            "A",
            "B",
            "A_grad",
        }
        sites |= {"B_grad", "delta_w", "adapter_grad"} | (updates if step == 0 else set())
        assert set(layers.index) == sites
        for site, named in layers.items():
            assert named == {*linears, MODEL_WIDE} if site in UNIONS else set(linears), (step, site)
    assert np.isfinite(probes["norm"]).all()
    assert (probes["nonfinite"] == 0).all()
    moved = probes[
        (probes["step"] == 1) & probes["site"].isin(["adapter_out", "adapter_in_grad", "delta_w"])
    ]
    assert (moved["norm"] > 0).all(), "after a step every adapter is non-zero"
    for stat, site in (("r_align", "adapter_out"), ("r_back", "adapter_in_grad"), ("rho", "A")):
        assert np.isfinite(
            probes.loc[(probes["step"] == 1) & (probes["site"] == site), stat]
        ).all(), stat
    assert math.isfinite(probes["spectral"].max())
