"""``study audit`` against dense singular values, and folded scaling, on adapters of PEFT."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from study.integrations.exporting import folded
from study.models import FrozenBase, tiny
from study.training.peft_format import CONFIG, read_adapter
from tests.models.small import mixtral

peft = pytest.importorskip("peft")
Cli = Callable[..., Any]
IDS = torch.arange(40).view(2, 20)
STILL = "model.layers.0.mlp.down_proj"


@pytest.fixture
def peft_model(tiny_base: FrozenBase) -> Any:
    """PEFT's model with several ranks and alphas, and one layer that has not moved."""
    config = peft.LoraConfig(
        r=6,
        lora_alpha=8,
        use_rslora=True,
        target_modules=["q_proj", "up_proj", "down_proj"],
        rank_pattern={"q_proj": 2},
        alpha_pattern={"layers.1.mlp.up_proj": 3},
    )
    model = peft.get_peft_model(copy.deepcopy(tiny_base.model), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name and STILL not in name:
                weight.normal_(std=0.1, generator=generator)
    return model.eval()


@pytest.fixture
def folder(peft_model: Any, tmp_path: Path) -> Path:
    peft_model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_the_numbers_are_those_of_dense_matrices(
    peft_model: Any, folder: Path, study_cli: Cli
) -> None:
    ran = study_cli("audit", str(folder), "--base", "tiny", "--json", "-q")
    assert (ran.code, ran.err) == (0, "")
    layers = json.loads(ran.out, object_hook=lambda one: SimpleNamespace(**one)).layers
    assert [one.layer for one in layers if not one.moved] == [STILL]
    for one in layers:
        layer = peft_model.get_submodule(f"base_model.model.{one.layer}")
        delta, W = layer.get_delta_weight("default").detach(), layer.base_layer.weight.detach()
        assert one.gamma == pytest.approx(layer.scaling["default"])
        assert one.gamma_ignored == pytest.approx(one.gamma / one.rank**0.5)
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


def test_experts_are_those_of_dense_matrices(tmp_path: Path, study_cli: Cli) -> None:
    base = AutoModelForCausalLM.from_config(mixtral())
    base.save_pretrained(tmp_path / "base")
    weights = {name: weight.clone() for name, weight in base.named_parameters()}
    names = ["experts.gate_up_proj", "experts.down_proj"]
    config = peft.LoraConfig(r=3, target_modules=["q_proj"], target_parameters=names)
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
    ran = study_cli("audit", *where, "--json", "-q")
    assert (ran.code, ran.err) == (0, "")
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


def test_the_text_names_what_matters(
    folder: Path, study_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = study_cli("audit", str(folder), "--base", "tiny")
    assert ran.code == 0, ran.err
    text = " ".join(ran.out.split())
    assert "rsLoRA on 6 layers: rank 2 to 6, lora_alpha 8, gamma 1.22474 to 5.65685." in text
    assert "ignores use_rslora makes the adapter's output 1.41421 to 2.44949 times smaller" in text
    assert f"1 of 6 layers have not moved (B = 0): {STILL}." in text
    assert {path.name for path in Path("plots/adapter").iterdir()} == {"audit.png", "audit.pdf"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"use_dora": True}, "use_dora=True is not plain LoRA"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "which is not A or B of a linear layer"),
        ({}, "the adapter is for another base than"),
    ],
)
def test_what_cannot_be_audited_gets_one_line(
    tiny_base: FrozenBase, tmp_path: Path, study_cli: Cli, options: dict[str, Any], words: str
) -> None:
    tiny.build(width=128).save_pretrained(tmp_path / "wide")
    config = peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj"], **options})
    peft.get_peft_model(copy.deepcopy(tiny_base.model), config).save_pretrained(tmp_path)
    ran = study_cli("audit", str(tmp_path), "--base", str(tmp_path / "wide"))
    assert ran.code == 2
    [line] = ran.err.splitlines()
    assert words in line


def test_folded_scaling_is_the_same_function_without_the_flag(
    peft_model: Any, folder: Path, tiny_base: FrozenBase, tmp_path: Path
) -> None:
    """Also for a reader that ignores use_rslora: the flag is false."""
    config = folded(read_adapter(folder))
    assert config["use_rslora"] is False
    copied = shutil.copytree(folder, tmp_path / "folded")
    (copied / CONFIG).write_text(json.dumps(config))
    again = peft.PeftModel.from_pretrained(copy.deepcopy(tiny_base.model), copied).eval()
    with torch.no_grad():
        expected, found = (model(IDS).logits for model in (peft_model, again))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    gammas = {name: pair.gamma for name, pair in read_adapter(copied).pairs.items()}
    assert gammas == pytest.approx({n: p.gamma for n, p in read_adapter(folder).pairs.items()})
