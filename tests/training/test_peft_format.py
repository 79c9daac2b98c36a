"""PEFT's format: PEFT loads our adapters with equal logits; a broken one gives one clear line."""

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from study.adapters import AdapterSpec, LoraPair, adapted
from study.errors import StudyError
from study.models import FrozenBase
from study.training.peft_format import CONFIG, WEIGHTS, read_adapter, write_adapter
from study.vocabulary import scaling
from study.vocabulary.peft_fields import INERT, LAYERS, PLAIN, READ

IDS = torch.arange(24).view(2, 12)


@pytest.fixture
def gpt2() -> nn.Module:
    """A tiny random GPT-2, whose linears are Conv1D."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    ).eval()


def trained(
    model: nn.Module, layers: list[str], **spec: Any
) -> tuple[dict[str, LoraPair], torch.Tensor]:
    """Adapters with a B that is not 0, and the model's logits with them."""
    with adapted(model, layers, [AdapterSpec(**spec)]) as banks, torch.no_grad():
        for number, bank in enumerate(banks):
            bank.pairs[0].B_OR.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
        logits = model(IDS).logits
        return {
            b.layer: LoraPair(*(w.clone() for w in b.pairs[0][:2]), b.pairs[0].gamma) for b in banks
        }, logits


def assert_equal_logits(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 1e-5 of the largest: our banks and PEFT multiply in different orders."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def peft_logits(model: nn.Module, folder: Path) -> torch.Tensor:
    peft = pytest.importorskip("peft")
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()(IDS).logits


@pytest.mark.parametrize(
    ("rule", "power"), [("lora", None), ("rslora", None), ("power", 0.75), ("power", 0.5)]
)
@pytest.mark.parametrize("targets", ["all", "some"])
def test_peft_loads_it_with_equal_logits(
    tiny_base: FrozenBase, tmp_path: Path, rule: str, power: float | None, targets: str
) -> None:
    layers = [
        n for n in tiny_base.card.linears if targets == "all" or n.endswith("0.self_attn.q_proj")
    ]
    gamma, p = scaling.gamma(rule, 16, 6, power), scaling.exponent(rule, power)
    pairs, expected = trained(tiny_base.model, layers, rank=6, gamma=gamma)
    modules = dict(tiny_base.model.named_modules())
    write_adapter(tmp_path / "adapter", pairs, alpha=16, exponent=p, modules=modules)
    assert_equal_logits(peft_logits(tiny_base.model, tmp_path / "adapter"), expected)
    with torch.no_grad():
        assert (tiny_base.model(IDS).logits - expected).abs().max() > 0.1
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert (config["r"], config["use_rslora"]) == (6, p == 0.5)
    assert config["lora_alpha"] == (16 if p in (0.5, 1) else pytest.approx(gamma * 6, rel=1e-15))
    kinds = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert config["target_modules"] == (
        kinds if targets == "all" else ["model.layers.0.self_attn.q_proj"]
    )


def test_the_files_that_other_tools_read(tiny_base: FrozenBase, tmp_path: Path) -> None:
    """vLLM and others expect these keys and shapes, and no other tensor in the file."""
    pairs, _ = trained(tiny_base.model, list(tiny_base.card.linears), rank=3, gamma=2.0)
    modules = dict(tiny_base.model.named_modules())
    write_adapter(
        tmp_path / "adapter", pairs, alpha=6, exponent=1.0, base="some/model", modules=modules
    )
    tensors = load_file(tmp_path / "adapter" / WEIGHTS)
    expected = {
        f"base_model.model.{n}.lora_{f}.weight" for n in tiny_base.card.linears for f in "AB"
    }
    assert tensors.keys() == expected
    assert tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"].shape == (128, 3)
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert (config["peft_type"], config["bias"], config["lora_alpha"]) == ("LORA", "none", 6)
    assert config["base_model_name_or_path"] == "some/model"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]


def test_conv1d(gpt2: nn.Module, tmp_path: Path) -> None:
    layers = [n for n, m in gpt2.named_modules() if type(m).__name__ == "Conv1D"]
    pairs, expected = trained(gpt2, layers, rank=4, gamma=2.0)
    write_adapter(
        tmp_path / "adapter", pairs, alpha=8, exponent=1.0, modules=dict(gpt2.named_modules())
    )
    assert json.loads((tmp_path / "adapter" / CONFIG).read_text())["fan_in_fan_out"] is True
    assert_equal_logits(peft_logits(gpt2, tmp_path / "adapter"), expected)


@pytest.mark.parametrize("rslora", [False, True])
def test_patterns_are_read_and_written_as_in_peft(
    tiny_base: FrozenBase, tmp_path: Path, rslora: bool
) -> None:
    peft = pytest.importorskip("peft")
    options = {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 7},
        "alpha_pattern": {"1.self_attn.v_proj": 3},
    }
    lora = peft.LoraConfig(
        r=4, lora_alpha=8, use_rslora=rslora, target_modules="all-linear", **options
    )
    model = peft.get_peft_model(copy.deepcopy(tiny_base.model), lora)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
        expected = model.eval()(IDS).logits
    model.save_pretrained(tmp_path / "theirs")
    found = read_adapter(tmp_path / "theirs")
    ranks = {layer: pair.A_RD.shape[0] for layer, pair in found.pairs.items()}
    assert set(ranks.values()) == {2, 4, 7}
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "lora_A")}
    for name, module in layers.items():
        pair = found.pairs[name.removeprefix("base_model.model.")]
        assert pair.gamma == pytest.approx(module.scaling["default"], rel=1e-15)
    spec = AdapterSpec(4, 1.0, start=found.pairs)
    with adapted(tiny_base.model, list(found.pairs), [spec]), torch.no_grad():
        assert_equal_logits(tiny_base.model(IDS).logits, expected)
    modules = dict(tiny_base.model.named_modules())
    write_adapter(
        tmp_path / "ours", found.pairs, alpha=8, exponent=0.5 if rslora else 1.0, modules=modules
    )
    assert_equal_logits(peft_logits(tiny_base.model, tmp_path / "ours"), expected)


# Broken adapters.


@pytest.fixture
def good(tiny_base: FrozenBase, tmp_path: Path) -> Path:
    pairs, _ = trained(tiny_base.model, list(tiny_base.card.linears), rank=3, gamma=2.0)
    write_adapter(
        tmp_path / "good", pairs, alpha=6, exponent=1, modules=dict(tiny_base.model.named_modules())
    )
    return tmp_path / "good"


def set_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def set_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


Q = "base_model.model.model.layers.0.self_attn.q_proj"
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, f"{CONFIG} does not exist"),
    "no config": (lambda f: (f / CONFIG).unlink(), f"{CONFIG} does not exist"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS} does not exist"),
    "a pickle": (
        lambda f: (f / WEIGHTS).rename(f / "adapter_model.bin"),
        "a pickle, which is not safe to open",
    ),
    "no json": (lambda f: (f / CONFIG).write_text("{"), "is not valid JSON"),
    "a list": (lambda f: (f / CONFIG).write_text("[]"), "holds a list, not an object"),
    "missing keys": (lambda f: set_config(f, r=..., lora_alpha=...), "lacks r, lora_alpha"),
    "another type": (lambda f: set_config(f, peft_type="VERA"), "unknown adapter type 'VERA'"),
    "dora": (lambda f: set_config(f, use_dora=True), "use_dora=True"),
    "a whole module": (lambda f: set_config(f, modules_to_save=["lm_head"]), "modules_to_save"),
    "rank 0": (lambda f: set_config(f, r=0), "r=0"),
    "a rank that is not a number": (
        lambda f: set_config(f, rank_pattern={"q_proj": "8"}),
        "rank_pattern.q_proj.='8'",
    ),
    "truncated": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]),
        "is damaged",
    ),
    "empty": (lambda f: set_tensors(f, dict.clear), "has no tensors"),
    "rank": (
        lambda f: set_config(f, r=8),
        r"down_proj has lora_A \[3, 128\] and lora_B \[64, 3\], but .* says rank 8",
    ),
    "shape": (
        lambda f: set_tensors(f, lambda t: t.update({f"{Q}.lora_B.weight": torch.zeros(64, 5)})),
        r"q_proj has lora_A \[3, 64\] and lora_B \[64, 5\]",
    ),
    "half": (
        lambda f: set_tensors(f, lambda t: t.pop(f"{Q}.lora_B.weight")),
        "no lora_B for .*q_proj",
    ),
    "an embedding": (
        lambda f: set_tensors(
            f, lambda t: t.update({"base_model.model.x.lora_embedding_A": torch.zeros(3)})
        ),
        "has an adapter on an embedding",
    ),
    "not finite": (
        lambda f: set_tensors(f, lambda t: t[f"{Q}.lora_A.weight"].fill_(float("nan"))),
        "q_proj has non-finite weights",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_adapter_is_one_clear_line(good: Path, kind: str) -> None:
    spoil, message = BROKEN[kind]
    spoil(good)
    with pytest.raises(StudyError, match=message) as caught:
        read_adapter(good)
    assert "\n" not in str(caught.value)


def test_another_base(good: Path, tiny_base: FrozenBase) -> None:
    found = read_adapter(good)
    shapes = {
        layer: (pair.A_RD.shape[1], pair.B_OR.shape[0]) for layer, pair in found.pairs.items()
    }
    found.check_fits(shapes, "tiny")
    first, second = list(shapes)[:2]
    with pytest.raises(
        StudyError,
        match=re.escape(f"another base than tiny: its {first} is 128 -> 64, not 32 -> 64"),
    ):
        found.check_fits(shapes | {first: (32, 64)}, "tiny")
    with pytest.raises(StudyError, match=f"another base than tiny, which has no {second}"):
        found.check_fits({n: s for n, s in shapes.items() if n != second}, "tiny")


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([10**400, "pissa", "LORA", "all", "none", "(", "8", "false"]),
    st.lists(st.integers() | st.text(max_size=4), max_size=2),
    st.dictionaries(st.text(max_size=6), st.integers() | st.floats() | st.none(), max_size=2),
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(st.sampled_from([*READ, *INERT, *LAYERS, *PLAIN, "x"]), JUNK, max_size=3))
def test_any_config_is_an_adapter_or_one_line(good: Path, changes: dict[str, Any]) -> None:
    before = (good / CONFIG).read_text()
    (good / CONFIG).write_text(json.dumps(json.loads(before) | changes))
    try:
        found = read_adapter(good)
    except StudyError:
        return
    finally:
        (good / CONFIG).write_text(before)
    for pair in found.pairs.values():
        assert pair.A_RD.shape[0] == pair.B_OR.shape[1] == 3
        assert 0 < pair.gamma < float("inf")
