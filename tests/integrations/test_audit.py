"""``study audit`` against dense singular values, and folded scaling, on adapters of PEFT."""

import copy
import json
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from study.integrations.serving import served
from study.training.peft_format import CONFIG, WEIGHTS, read_adapter
from tests.models.small import gpt2, mixtral

peft = pytest.importorskip("peft")
IDS = torch.arange(40).view(2, 20)
STILL = "model.layers.0.mlp.down_proj"
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


def test_the_numbers_are_those_of_dense_matrices(patterned, theirs, works):
    ran = works("audit", str(theirs), "--base", "tiny", "--json", "-q")
    assert ran.err == ""
    layers = json.loads(ran.out, object_hook=lambda one: SimpleNamespace(**one)).layers
    assert [one.layer for one in layers if not one.moved] == [STILL]
    for one in layers:
        layer = patterned.get_submodule(f"base_model.model.{one.layer}")
        delta, W = layer.get_delta_weight("default").detach(), layer.base_layer.weight.detach()
        assert one.gamma == pytest.approx(layer.scaling["default"])
        assert (one.d_out, one.d_in) == delta.shape
        assert one.base_norm == pytest.approx(float(W.norm()), rel=1e-4)
        assert one.base_spectral == pytest.approx(float(torch.linalg.matrix_norm(W, 2)), rel=1e-3)
        s = torch.linalg.svdvals(delta.double()).numpy()[: one.rank]
        assert one.norm == pytest.approx(np.linalg.norm(s), rel=1e-5)
        assert one.spectral == pytest.approx(s[0], rel=1e-5)
        if one.moved:
            p = s / s.sum()
            assert one.effective_rank == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)
            assert one.stable_rank == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-5)
            assert one.relative == pytest.approx(float(delta.norm() / W.norm()), rel=1e-4)


def test_experts_are_those_of_dense_matrices(tmp_path, works):
    base = AutoModelForCausalLM.from_config(mixtral())
    base.save_pretrained(tmp_path / "base")
    weights = {name: weight.clone() for name, weight in base.named_parameters()}
    config = peft.LoraConfig(r=3, target_modules=["q_proj"], target_parameters=EXPERTS)
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    deltas = {
        name.removesuffix(".weight"): weight.detach() - weights[name]
        for name, weight in model.merge_and_unload().named_parameters()
        if not torch.equal(weight, weights[name])
    }
    where = (str(tmp_path / "adapter"), "--base", str(tmp_path / "base"))
    ran = works("audit", *where, "--json", "-q")
    assert ran.err == ""
    found = json.loads(ran.out, object_hook=lambda one: SimpleNamespace(**one)).layers
    assert {one.layer: one.experts for one in found} == {
        layer: 4 * (delta.ndim == 3) for layer, delta in deltas.items()
    }
    for one in found:
        delta = deltas[one.layer]
        assert (one.d_out, one.d_in) == delta.shape[-2:]
        assert one.norm == pytest.approx(float(delta.norm()), rel=1e-4)
        largest = float(torch.linalg.matrix_norm(delta, 2).max())
        assert one.spectral == pytest.approx(largest, rel=1e-4)


def test_the_text_names_what_matters(theirs, works):
    ran = works("audit", str(theirs), "--base", "tiny")
    text = " ".join(ran.out.split())
    assert "rsLoRA on 6 layers: rank 2 to 6, lora_alpha 8, gamma 1.22474 to 5.65685." in text
    assert "Other factors than PEFT's: vLLM, llama.cpp, Ollama (study serve-check)." in text
    assert f"1 of 6 layers have not moved (B = 0): {STILL}." in text


def test_the_motion_of_A_needs_the_adapter_before_training(tiny_base, tmp_path, works, study_cli):
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"])
    model = peft.get_peft_model(copy.deepcopy(tiny_base.model), config)
    model.save_pretrained(tmp_path / "first")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_A" in name:
                weight *= 1.5
            if "lora_B" in name:
                weight.normal_()
    model.save_pretrained(tmp_path / "last")
    folders = str(tmp_path / "last"), "--initial", str(tmp_path / "first")
    layers = json.loads(works("audit", *folders, "--json", "-q").out)["layers"]
    assert [one["rho"] for one in layers] == pytest.approx([0.5] * len(layers))
    assert "A has moved by 0.5 of its initial size" in " ".join(
        works("audit", *folders).out.split()
    )
    other = peft.LoraConfig(r=8, target_modules=["q_proj", "up_proj"])
    peft.get_peft_model(copy.deepcopy(tiny_base.model), other).save_pretrained(tmp_path / "other")
    ran = study_cli("audit", str(tmp_path / "last"), "--initial", str(tmp_path / "other"))
    assert ran.code == 2
    assert "differs" in ran.err


HEAD = {"modules_to_save": ["lm_head"]}
EMBEDDED = {"target_modules": ["q_proj", "embed_tokens"], "rank_pattern": {"embed_tokens": 7}}
GPT2 = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_rslora": True}
KINDS = {
    **{f"LoRA {r}": {"r": r, "lora_alpha": 2 * r} for r in (1, 64)},
    **{f"rsLoRA {r}": {"r": r, "lora_alpha": 16, "use_rslora": True} for r in (1, 3, 64)},
    "alpha": {"r": 8, "lora_alpha": 5.5},
    "alphas": {"r": 8, "alpha_pattern": {"q_proj": 3, "layers.1.mlp.up_proj": 40}},
    "ranks": {"r": 8, "rank_pattern": {"q_proj": 2, "v_proj": 12}},
    "all": {"use_rslora": True, "rank_pattern": {"up_proj": 30}, "alpha_pattern": {"up_proj": 1}},
    "a regex": {"r": 4, "target_modules": r".*(q|v)_proj", "use_rslora": True},
    "a block": {"r": 4, "layers_to_transform": [1], "use_rslora": True},
    "experts": {"r": 3, "use_rslora": True, "target_parameters": EXPERTS},
    "experts of two ranks": {"r": 3, "rank_pattern": {"q_proj": 9}, "target_parameters": EXPERTS},
    "experts, alphas": {"r": 3, "alpha_pattern": {"q_proj": 1}, "target_parameters": EXPERTS},
    "a weight": {"r": 4, "target_parameters": ["down_proj.weight"], "use_rslora": True},
    "GPT-2": {"r": 3, **GPT2},
    "GPT-2, alphas": {"r": 3, "alpha_pattern": {"c_attn": 1}, **GPT2},
    "biases": {"r": 4, "use_rslora": True, "bias": "all", "target_modules": ["c_attn"]},
    "biases of B": {"r": 4, "lora_alpha": 3, "lora_bias": True},
    "a head": {"r": 4, "use_rslora": True, **HEAD},
    "embeddings": {"r": 4, "use_rslora": True, **EMBEDDED},
    "embeddings and a head": {"r": 4, **EMBEDDED, **HEAD},
    "tokens": {"r": 4, "use_rslora": True, "trainable_token_indices": [3, 5]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folded_adapter_is_the_same_function_as_plain_lora(kind, tiny_base, tmp_path, works):
    torch.manual_seed(0)
    other = (
        mixtral() if "experts" in kind else gpt2() if "GPT" in kind or kind == "biases" else None
    )
    plain_loops = {"experts_implementation": "eager"} if "experts" in kind else {}
    base = (
        AutoModelForCausalLM.from_config(other, **plain_loops).eval() if other else tiny_base.model
    )
    config = peft.LoraConfig(**{"target_modules": ["q_proj", "up_proj", "v_proj"], **KINDS[kind]})
    model = peft.get_peft_model(copy.deepcopy(base), config).eval()
    with torch.no_grad():
        for weight in (weight for weight in model.parameters() if weight.requires_grad):
            weight += 0.1 * torch.randn_like(weight)
    model.save_pretrained(tmp_path / "adapter")
    works("fold", str(tmp_path / "adapter"), str(tmp_path / "folded"))
    written = json.loads((tmp_path / "folded" / CONFIG).read_text())
    assert written["lora_alpha"] == written["r"]
    assert not any(written[key] for key in ("use_rslora", "alpha_pattern", "rank_pattern"))
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "folded").eval()
    with torch.no_grad():
        expected, found, plain = (
            each.double()(IDS).logits for each in (model, again, copy.deepcopy(base))
        )
    largest = expected.abs().max()
    assert (found - expected).abs().max() < 1e-6 * largest
    assert (plain - expected).abs().max() > 1e-2 * largest
    assert "Servers multiply it as PEFT does" in works("serve-check", str(tmp_path / "folded")).out


def test_the_cost_of_rounding_is_said(theirs, tmp_path, works):
    """Mantissas from 1 to 2 have a mean square of about 2.2: 2**-7 / sqrt(12 * 2.2) = 0.15 %."""
    weights = {name: weight.bfloat16() for name, weight in load_file(theirs / WEIGHTS).items()}
    save_file(weights, theirs / WEIGHTS)
    ran = works("fold", theirs, tmp_path / "folded")
    assert "bfloat16 rounds B by 0.002 of its norm" in ran.out


@pytest.mark.parametrize(
    ("dtype", "alpha", "says"),
    [
        (torch.float16, 1e6, "is infinite in float16"),
        (torch.float16, 1e-9, "is all zero in float16"),
        (torch.float32, 1e-300, "is all zero in float32"),
        (torch.complex64, 8, "weights of torch.complex64"),
        (torch.int8, 8, "weights of torch.int8"),
    ],
)
def test_fold_refuses_weights_that_a_type_can_not_hold(dtype, alpha, says, theirs, refused):
    weights = {name: weight.to(dtype) for name, weight in load_file(theirs / WEIGHTS).items()}
    save_file(weights, theirs / WEIGHTS)
    config = json.loads((theirs / CONFIG).read_text())
    (theirs / CONFIG).write_text(json.dumps({**config, "lora_alpha": alpha, "alpha_pattern": {}}))
    assert says in refused("fold", theirs, theirs.parent / "folded")


HANGS = r"([a-z0-9._]+)+[A-Z]"
"""The module re needs 2^50 steps to see that it matches no path."""


def test_a_pattern_of_a_stranger_can_not_hang(theirs, works, refused):
    def write(pattern):
        config = json.loads((theirs / CONFIG).read_text())
        config["rank_pattern"] |= {pattern: 1}
        (theirs / CONFIG).write_text(json.dumps(config))

    plain = works("serve-check", theirs).out
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("a pattern hangs"))
    signal.alarm(60)
    try:
        write(HANGS)
        assert works("serve-check", theirs).out == plain
        write(r"(?:(a)|b|(?R))*[A-Z]")
        for command in ("serve-check", "audit", "import", "fold"):
            out = [theirs.parent / "folded"] if command == "fold" else []
            assert "takes too long" in refused(command, theirs, *out)
    finally:
        signal.alarm(0)


def test_what_servers_multiply_by(theirs):
    """Ranks 2 and 6 with alpha 8, and rank 6 with alpha 3."""
    adapter = read_adapter(theirs)
    rows = served(adapter).sort_values("gamma", ascending=False, kind="stable")
    vllm, llama = 8 / 6**0.5, (8 / 2, 8 / 6, 8 / 6)
    for server, factors in {
        "vLLM": (vllm,) * 3,
        "llama.cpp": llama,
        "LoRAX": (np.nan,) * 3,
    }.items():
        np.testing.assert_allclose(rows.loc[rows["server"] == server, "factor"], factors)
    rows = served(replace(adapter, config={**adapter.config, "lora_alpha": 45.25}))
    assert set(rows.loc[rows["server"] == "Ollama", "result"]) == {"refuses lora_alpha=45.25"}
