"""LLaMA-Factory's YAML."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from study.integrations.configs import read_file

Edit = Callable[..., None]
FILE = Path("factory.yaml")


def test_llama_factory() -> None:
    experiment = read_file(FILE)
    assert experiment.groups == {"model": "hf", "data": "file", "optimizer": "adamw"}
    assert experiment.values == {
        "model.path": "org/model-4b",
        "model.quant_bits": 4,
        "data.sequence_length": 64,
        "data.format": "messages",
        "data.path": "org/chats",
        "data.split": "train[:1000]",
        "adapter.rank": 8,
        "adapter.alpha": 16.0,
        "adapter.scaling": "rslora",
        "adapter.targets": ["q_proj", "v_proj"],
        "adapter.dropout": 0.0,
        "optimizer.lr": 1e-4,
        "optimizer.weight_decay": 0.0,
        "train.batch_size": 1,
        "train.accumulation": 8,
        "train.clip": 1.0,
        "train.epochs": 3.0,
        "train.schedule": "cosine",
        "train.warmup": 0.1,
        "precision": "bf16",
        "seed": 42,
    }
    assert experiment.differs[:2] == [
        "dataset: more (only chats is trained on: join them in a file)",
        "template: qwen3_nothink (the tokenizer's own chat template is used)",
    ]
    assert experiment.defaults == [
        "LLaMA-Factory's defaults: max_grad_norm 1.0, optim adamw_torch_fused, seed 42, "
        "lora_alpha 16.0"
    ]
    assert experiment.ignored == ["do_train", "output_dir", "plot_loss"]


def test_its_defaults(edit: Edit) -> None:
    given = ("lora_rank", "lora_target", "use_rslora", "cutoff_len", "learning_rate", "bf16")
    given += ("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs")
    given += ("lr_scheduler_type", "warmup_ratio", "stage", "finetuning_type", "quantization_bit")
    edit("factory.yaml", **dict.fromkeys(given))
    values = read_file(FILE).values
    expected = {
        "adapter.rank": 8,
        "adapter.alpha": 16.0,
        "adapter.scaling": "lora",
        "adapter.targets": "all-linear",
        "data.sequence_length": 2048,
        "train.batch_size": 8,
        "train.accumulation": 1,
        "train.epochs": 3.0,
        "train.schedule": "linear",
        "optimizer.lr": 5e-5,
        "precision": "float32",
    }
    assert expected.items() <= values.items()
    assert "train.warmup" not in values


DATASETS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a file": (
        {"dataset": "rows"},
        {"data.format": "alpaca", "data.path": "rows.json"},
        "template: qwen3_nothink (data.format=alpaca's prompt)",
    ),
    "texts": (
        {"dataset": "texts", "stage": "pt"},
        {"data.format": "completion", "data.path": "rows.json"},
        "max_samples: 1000 (all rows of the file are read)",
    ),
    "named columns": (
        {"dataset": "named"},
        {"data.format": "alpaca", "data.path": "rows.json"},
        "named.columns: no query (a field input is read)",
    ),
    "a system message": (
        {"dataset": "told"},
        {"data.format": "messages", "data.path": "told"},
        "told.columns.system: rules (a system message is read from the field system)",
    ),
    "other columns": ({"dataset": "answers"}, {}, "dataset: answers (convert its rows"),
    "other roles": ({"dataset": "roles"}, {}, "dataset: roles (convert its rows"),
    "no description": (
        {"dataset_dir": "REMOTE:org/data"},
        {},
        "dataset: chats (dataset_info.json is not in REMOTE:org/data: give data.path=...",
    ),
}


@pytest.mark.parametrize("case", DATASETS)
def test_datasets(edit: Edit, case: str) -> None:
    keys, values, says = DATASETS[case]
    edit("factory.yaml", **keys)
    experiment = read_file(FILE)
    found = {key: experiment.values.get(key) for key in ("data.format", "data.path")}
    if path := found["data.path"]:
        found["data.path"] = Path(path).name
    assert found == {"data.format": None, "data.path": None, **values}
    assert says in "\n".join(experiment.differs)
