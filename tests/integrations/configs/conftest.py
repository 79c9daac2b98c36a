"""The samples of docs/examples, and other configurations, as users have them."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from study.store import StudyTables, load_measured

EXAMPLES = Path(__file__).parents[3] / "docs/examples"
ENTRIES = {
    "formula_llama_3_1_8b_8bits_r8_rslora": {
        "base_model": "meta-llama/Llama-3.1-8B-Instruct",
        "dataset_path": "train.jsonl",
        "lora_r": 8,
        "quant_bits": 8,
        "learning_rate": 1e-4,
        "num_epochs": 4,
        "batch_size": 8,
        "gradient_accumulation_steps": 2,
        "peft_use_rslora": True,
    },
    "r4_dora": {
        "base_model": "org/model",
        "dataset_path": "elsewhere/train.jsonl",
        "lora_r": 4,
        "quant_bits": 4,
        "lora_alpha": 32,
        "peft_use_dora": True,
    },
}
PEFT = {"peft_type": "LORA", "base_model_name_or_path": "org/model", "r": 8, "lora_alpha": 16}


@pytest.fixture(autouse=True)
def _files(here, jsonl):
    """In the working directory: a configuration in each form, and data."""
    shutil.copytree(EXAMPLES, Path(), dirs_exist_ok=True)
    shutil.copy(jsonl, "train.jsonl")
    Path("finetune_configs.json").write_text(json.dumps(ENTRIES))
    Path("adapter_config.json").write_text(json.dumps({**PEFT, "target_modules": ["q_proj"]}))
    Path("mine.jinja").write_text("{{ messages }}")


@pytest.fixture
def edit() -> Callable[..., None]:
    """Replace keys of a file: ``edit("axolotl.yml", lora_r=8)``; None removes a key."""

    def replace(name, **keys):
        values = yaml.safe_load(Path(name).read_text())
        for key, value in keys.items():
            *above, last = key.split("__")  # lora__lora_r is in a section
            (values[above[0]] if above else values)[last] = value
        kept = {key: value for key, value in values.items() if value is not None}
        Path(name).write_text(json.dumps(kept))

    return replace


@pytest.fixture
def trained(works) -> Callable[..., StudyTables]:
    """Run two steps of a printed command on the tiny base and read the study's tables."""

    def run(line, *more):
        words = shlex.split(line)
        small = ["model=tiny", "train.steps=2", "train.epochs=null", "data.sequence_length=48"]
        works(*words[1:], *small, *more)
        (name,) = (word.partition("=")[2] for word in words if word.startswith("experiment="))
        return load_measured(f"results/{name}")

    return run
