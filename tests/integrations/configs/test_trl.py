"""TRL's YAML, ``--base``, and configurations of adapters for models of other kinds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Cli = Callable[..., Any]
Edit = Callable[..., None]

# The keys of the alignment-handbook's recipe for Zephyr.
TRL: dict[str, Any] = {
    "model_name_or_path": "mistralai/Mistral-7B-v0.1",
    "torch_dtype": "bfloat16",
    "load_in_4bit": True,
    "use_peft": True,
    "lora_r": 16,
    "lora_alpha": 8,
    "lora_target_modules": ["q_proj", "o_proj"],
    "chat_template": "{% for message in messages %}{% endfor %}",
    "dataset_mixture": {
        "datasets": [
            {"id": "HuggingFaceH4/ultrachat_200k", "split": "train_sft", "columns": ["messages"]},
            {"id": "HuggingFaceH4/ultrachat_200k", "split": "test_sft", "columns": ["messages"]},
        ],
        "seed": 0,
    },
    "dataset_num_proc": 12,
    "bf16": True,
    "learning_rate": 2.0e-4,
    "lr_scheduler_type": "cosine",
    "max_length": 2048,
    "packing": True,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 1,
    "warmup_ratio": 0.1,
}
# PEFT's own benchmark (method_comparison) writes null for the base and the targets.
PEFT: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": None,
    "r": 64,
    "lora_alpha": 64,
    "lora_dropout": 0.0,
    "target_modules": None,
    "use_rslora": True,
}


@pytest.fixture(autouse=True)
def _files(_here: None) -> None:
    Path("trl.yaml").write_text(yaml.safe_dump(TRL))
    Path("adapter_config.json").write_text(json.dumps(PEFT))


def written(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load(Path(f"conf/experiment/{name}.yaml").read_text()))


def test_what_is_read_of_trls_yaml(study_cli: Cli) -> None:
    ran = study_cli("import-config", "trl.yaml")
    assert ran.code == 0, ran.err
    found = written("trl")
    assert found["adapter"] == {
        "rank": 16,
        "alpha": 8.0,
        "scaling": "lora",
        "targets": ["q_proj", "o_proj"],
        "dropout": 0.05,
    }
    assert found["optimizer"]["lr"] == 2e-4
    assert found["precision"] == "bf16"
    assert (found["train"]["batch_size"], found["train"]["accumulation"]) == (4, 2)
    assert yaml.safe_load(Path("conf/model/trl.yaml").read_text())["quant_bits"] == 4
    data = yaml.safe_load(Path("conf/data/trl.yaml").read_text())
    assert (data["path"], data["split"]) == ("HuggingFaceH4/ultrachat_200k", "train_sft")
    assert (data["format"], data["sequence_length"]) == ("messages", 2048)
    for note in ("only the first is trained on", "chat_template", "packing", "assistant_only_loss"):
        assert note in ran.err
    assert "TRL's defaults: lora_dropout 0.05, max_grad_norm 1.0" in ran.err


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"use_peft": None}, "use_peft is not true, which trains all weights"),
        ({"beta": 0.01}, "beta is for training on preferences or rewards"),
        ({"dataset_mixture": None, "dataset_mixer": None}, "dataset_name is missing"),
    ],
)
def test_trls_yaml_that_trains_something_else(
    study_cli: Cli, edit: Edit, keys: dict[str, Any], says: str
) -> None:
    edit("trl.yaml", max_seq_length=64, **keys)
    ran = study_cli("import-config", "trl.yaml")
    assert ran.code == 2
    assert says in ran.err


def test_a_null_base_is_given_on_the_command_line(study_cli: Cli) -> None:
    refused = study_cli("import-config", "adapter_config.json")
    assert refused.code == 2
    assert "names no base: give one with --base" in refused.err
    ran = study_cli("sweep-from", "adapter_config.json", "--base", "org/llama", "--name", "mine")
    assert ran.code == 0, ran.err
    assert yaml.safe_load(Path("conf/model/mine.yaml").read_text())["path"] == "org/llama"
    assert written("mine")["adapter"]["targets"] == ["q_proj", "v_proj"]
    ran = study_cli("import-config", "axolotl.yml", "--base", "org/other")
    assert yaml.safe_load(Path("conf/model/axolotl.yaml").read_text())["path"] == "org/other"


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"target_modules": ["to_k", "to_q", "to_out.0"]}, "to_k, a layer of image models"),
        ({"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS': only CAUSAL_LM can be read"),
        (
            {"task_type": None, "auto_mapping": {"base_model_class": "ViTModel"}},
            "its base is a 'ViTModel': only causal language models can be read",
        ),
    ],
)
def test_adapters_of_other_models(study_cli: Cli, keys: dict[str, Any], says: str) -> None:
    config = PEFT | {"base_model_name_or_path": "org/model"} | keys
    Path("adapter_config.json").write_text(json.dumps(config))
    ran = study_cli("import-config", "adapter_config.json")
    assert ran.code == 2
    assert says in ran.err
    ran = study_cli("import", ".")
    assert ran.code == 2
    assert says in ran.err
