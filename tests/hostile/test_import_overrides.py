"""Overrides of ``study import``: a wrong one gets one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
CONFIG = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["model.layers.0.self_attn.q_proj"],
}


@pytest.fixture
def adapter(here: Path) -> Path:
    folder = here / "a"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    tensors = {"lora_A": torch.ones(2, 64), "lora_B": torch.ones(64, 2)}
    save_file(
        {f"{LAYER}.{name}.weight": tensor for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("model=tiny foo=1", "unknown key foo: choose from model, data"),
        ("model=tiny adapter.rank", "can't read adapter.rank"),
        ("model=nope", "Could not find 'model/nope': choose from"),
        ("model=tiny optimizer=null", "Config group override must be"),
        ("model=tiny seed=${nope}", "Interpolation key 'nope' not found"),
        ("model=tiny train.steps=ten", "train.steps"),
        ("model=tiny seed=1,2", "Ambiguous value"),
        ("model=tiny name=../x", "name='../x' has a slash"),
        ("model=tiny results_dir=/proc/x", "results_dir=/proc/x can't be written"),
    ],
)
def test_wrong_overrides_get_one_line(
    refused: Callable[..., str], adapter: Path, overrides: str, says: str
) -> None:
    refused(["import", "a", *overrides.split(" ")], says)
