"""Families of transformers, tiny and random: adapted layers, folds and probes.

Each model is saved to a folder and loaded from it offline, as a user's own model is.
"""

import re
import socket

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
import yaml

from study.adapters import AdapterSpec, LoraPair, adapted, dense_weight, resolve_targets
from study.config import ModelConfig
from study.errors import StudyError
from study.models import load_base
from study.vocabulary.quantities import MODEL_WIDE, UNIONS
from tests.trained import trained

from .small import SHAPE, SMALL, gpt2

CPU = torch.device("cpu")
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8}
QKVO, GATED = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}

USUAL = {
    "qwen3": (transformers.Qwen3Config(**SMALL, head_dim=8), QKVO, GATED),
    "gemma3": (transformers.Gemma3TextConfig(**SMALL, **GEMMA), QKVO, GATED),
    "gpt2": (gpt2(), {"c_attn", "c_proj"}, {"c_fc", "c_proj"}),
    "phi3": (
        transformers.Phi3Config(**SMALL),
        {"qkv_proj", "o_proj"},
        {"gate_up_proj", "down_proj"},
    ),
    "falcon": (  # it changes the output of its MLP in place
        transformers.FalconConfig(**SHAPE, num_attention_heads=4),
        {"query_key_value", "dense"},
        {"dense_h_to_4h", "dense_4h_to_h"},
    ),
}
"""A configuration, the linears of attention, and the linears of the MLP. The tiny base of other
tests is a Llama."""
SITES = {"adapter_in", "adapter_out", "layer_out", "layer_out_grad", "adapter_in_grad", "A", "B"}
SITES |= {"A_grad", "B_grad", "delta_w", "adapter_grad"}
UPDATES = {"A_update", "B_update", "adapter_update"}


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr(
        socket.socket, "connect", lambda *_: pytest.fail("a folder needs no network")
    )


def run(base, corpus, cells):
    """Each cell's metrics and probes."""
    return [
        (pd.DataFrame([row.metrics for row in rows]), pd.concat([row.probes for row in rows]))
        for rows in trained(base, corpus, *cells)
    ]


@pytest.mark.parametrize("family", USUAL)
def test_layers_are_found_a_fold_equals_its_cells_and_probes_are_complete(
    family, save_family, cell, corpus
):
    config, attention, mlp = USUAL[family]
    common = [
        "model=hf",
        f"model.path={save_family(config)}",
        "train.steps=1",
        "probes.steps=[0,1]",
    ]
    common += ["train.eval_every=0", "train.batch_size=2", "probes.stats=[all,r_align,r_back,rho]"]
    other = ["adapter.rank=5", "adapter.scaling=rslora", "optimizer=sgd", "optimizer.lr=0.1"]
    cells = [cell("adapter.rank=2", *common), cell(*common, *other, "seed=1")]
    base = load_base(cells[0].model, CPU, "float32")
    found = {half: resolve_targets(base.card.linears, half) for half in ("attention", "mlp")}
    kinds = {half: {path.rpartition(".")[2] for path in paths} for half, paths in found.items()}
    assert kinds == {"attention": attention, "mlp": mlp}
    assert sorted([*found["attention"], *found["mlp"]]) == sorted(base.card.linears)
    assert len(base.card.linears) == 2 * (len(attention) + len(mlp))
    for config, (metrics, probes) in zip(cells, run(base, corpus, cells), strict=True):
        [(alone, measured)] = run(base, corpus, [config])
        for name in ("loss", "grad_norm", "loss_after"):
            np.testing.assert_allclose(metrics[name], alone[name], rtol=1e-4, err_msg=name)
        both = probes.merge(measured, on=["step", "layer", "site"], validate="1:1")
        assert len(both) == len(probes) == len(measured)
        big = both["norm_y"] > 1e-7
        np.testing.assert_allclose(both["norm_x"][big], both["norm_y"][big], rtol=1e-2)
        _check_whole(probes, base.card.linears)


def _check_whole(probes, linears):
    """Every site has finite numbers for every layer, and the unions also for the whole model."""
    for step, rows in probes.groupby("step"):
        layers = rows.groupby("site", observed=True)["layer"].agg(set)
        assert set(layers.index) == SITES | (UPDATES if step == 0 else set())
        for site, named in layers.items():
            assert named == {*linears, MODEL_WIDE} if site in UNIONS else set(linears), (step, site)
    assert np.isfinite(probes["norm"]).all()
    assert (probes["nonfinite"] == 0).all()
    assert np.isfinite(probes["spectral"].max())
    moved = probes[probes["step"] == 1].set_index("site")
    for site in ("adapter_out", "adapter_in_grad", "delta_w"):
        assert (moved.loc[[site], "norm"] > 0).all(), "after a step every adapter is non-zero"
    for stat, site in (("r_align", "adapter_out"), ("r_back", "adapter_in_grad"), ("rho", "A")):
        assert np.isfinite(moved.loc[[site], stat]).all(), stat


# Blocks that are not a Llama's: state spaces, routers, a head with its own scale.

STATE = {"state_size": 8, "time_step_rank": 4}
HYBRID = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64}
LLAMA4 = {"intermediate_size_mlp": 48, "num_local_experts": 4, "num_experts_per_tok": 1}

UNUSUAL = {
    # It multiplies by the weight of dt_proj.
    "mamba": lambda: transformers.MambaConfig(**SHAPE, **STATE),
    # Its router is a subclass of nn.Linear that returns a tuple.
    "phimoe": lambda: transformers.PhimoeConfig(**SMALL, num_local_experts=4),
    # Its head reads a scale from the trunk.
    "falcon_h1": lambda: transformers.FalconH1Config(**SMALL, **HYBRID, mamba_n_groups=1),
    # Its base_model_prefix names no child.
    "llama4_text": lambda: transformers.Llama4TextConfig(**SMALL, **LLAMA4, head_dim=8),
}


@pytest.mark.parametrize("family", UNUSUAL)
def test_a_probed_step(family, save_family, cell, corpus):
    model = ["model=hf", f"model.path={save_family(UNUSUAL[family]())}", "adapter.rank=2"]
    config = cell(*model, "train.steps=1", "probes.steps=[0,1]", "train.eval_every=0")
    base = load_base(config.model, CPU, "float32")
    [(metrics, probes)] = run(base, corpus, [config])
    assert metrics["loss"][0] != metrics["loss"][1]
    assert np.isfinite(probes["norm"]).all()
    moved = probes[(probes["step"] == 1) & (probes["site"] == "delta_w")]
    assert set(moved["layer"]) == set(base.card.shapes)
    assert (moved["norm"] > 0).all(), "every adapter has a gradient"


HYBRIDS = {
    **{name: make for name, make in UNUSUAL.items() if name in ("mamba", "falcon_h1")},
    "mamba2": lambda: transformers.Mamba2Config(
        **SHAPE, state_size=8, head_dim=16, num_heads=4, n_groups=1
    ),
    "bamba": lambda: transformers.BambaConfig(
        **SMALL, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8
    ),
}


@pytest.mark.parametrize("targets", ["all-linear", "[out_proj]", "[in_proj]", r"'.*(in|out)_proj'"])
@pytest.mark.parametrize("family", HYBRIDS)
def test_what_peft_refuses_is_refused(family, targets, save_family, study_cli, jsonl):
    """Bamba has the same layers, and PEFT adapts them."""
    peft = pytest.importorskip("peft")
    config, read = HYBRIDS[family](), yaml.safe_load(targets)
    model = transformers.AutoModelForCausalLM.from_config(config)
    try:
        peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=read))
    except ValueError:
        refuses = True
    else:
        refuses = False
    data = f"data=file data.path={jsonl} data.sequence_length=48 data.heldout=6 --plan"
    words = ["model=hf", f"model.path={save_family(config)}", f"adapter.targets={targets}"]
    ran = study_cli("train", *words, *data.split())
    assert ran.code == (2 if refuses else 0), ran.err
    assert ("which PEFT refuses to adapt" in ran.err) == refuses
    if refuses:
        words[-1] = re.search(r"adapter\.targets=\[[\w,]+\]$", ran.err.strip())[0]
        assert study_cli("train", *words, *data.split()).code == 0


@pytest.fixture
def mamba(save_family):
    return load_base(ModelConfig("hf", str(save_family(UNUSUAL["mamba"]()))), CPU, "float32")


def test_a_model_that_reads_a_weight_itself_gets_the_adapted_one(mamba):
    """Mamba's logits are those of a Mamba whose weights are ``W + gamma B A``."""
    model = mamba.model
    draw = torch.Generator().manual_seed(0)
    start = {
        path: LoraPair(
            torch.randn(3, d, generator=draw) / 8, torch.randn(o, 3, generator=draw) / 8, 0.5
        )
        for path, (d, o) in mamba.card.shapes.items()
    }
    ids_BT = torch.arange(20).view(2, 10)
    frozen_BTV = model(ids_BT).logits
    with adapted(model, mamba.card.linears, [AdapterSpec(3, 1.0, start=start)]), torch.no_grad():
        adapted_BTV = model(ids_BT).logits
    for path, (A_RD, B_OR, gamma) in start.items():
        W_OD = dense_weight(model.get_submodule(path))
        W_OD.data += gamma * B_OR @ A_RD
    merged_BTV = model(ids_BT).logits
    assert (merged_BTV - frozen_BTV).abs().max() > 0.1
    torch.testing.assert_close(adapted_BTV, merged_BTV, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", [[AdapterSpec(2, 1.0)] * 2, [AdapterSpec(2, 1.0, dropout=0.1)]])
def test_a_weight_that_can_not_be_read_is_one_line(spec, mamba):
    with (
        adapted(mamba.model, mamba.card.linears, spec),
        pytest.raises(StudyError, match=r"reads the weight of .*dt_proj itself: leave it out"),
    ):
        mamba.hidden_states(torch.arange(20).view(2, 10))
