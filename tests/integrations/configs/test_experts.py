"""Weights of experts in imported configurations: ``target_parameters`` beside modules."""

import json
from pathlib import Path

import pytest

from study.adapters import resolve_targets
from study.integrations.configs import read_file

PEFT = {
    "peft_type": "LORA",
    "base_model_name_or_path": "org/moe",
    "r": 8,
    "lora_alpha": 16,
}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.parametrize(
    ("modules", "targets"),
    [
        (["q_proj"], ["q_proj", *EXPERTS]),
        ("q_proj", ["q_proj", *EXPERTS]),
        (None, EXPERTS),
        ("all-linear", "all-linear"),
        (
            r".*\.(q|v)_proj",
            r"(.*\.(q|v)_proj)|(.*\.)?(mlp\.experts\.gate_up_proj|mlp\.experts\.down_proj)",
        ),
    ],
)
def test_peft(tmp_path: Path, modules: object, targets: object) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**PEFT, "target_modules": modules, "target_parameters": EXPERTS}))
    experiment = read_file(path)
    assert experiment.values["adapter.targets"] == targets
    assert experiment.notes.differs == []


def test_a_joined_regex_selects_both() -> None:
    block = "model.layers.0"
    paths = [f"{block}.self_attn.q_proj", f"{block}.mlp.experts.down_proj", f"{block}.mlp.up_proj"]
    joined = r"(.*\.(q|v)_proj)|(.*\.)?(experts\.down_proj)"
    assert resolve_targets(paths, joined) == paths[:2]


def test_a_linear_layer_may_be_selected_by_its_weight(tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    weights = ["shared_experts.up_proj.weight", *EXPERTS]
    path.write_text(json.dumps({**PEFT, "target_modules": [], "target_parameters": weights}))
    assert read_file(path).values["adapter.targets"] == ["shared_experts.up_proj", *EXPERTS]
