"""LLaMA-Factory's YAML."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from study.integrations.configs import read_file

Cli = Callable[..., Any]
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
    assert experiment.notes.differs[:2] == [
        "dataset: more (only chats is trained on: join them in a file)",
        "template: qwen3_nothink (the tokenizer's own chat template is used)",
    ]
    assert experiment.notes.defaults == [
        "LLaMA-Factory's defaults: lora_alpha 16.0, max_grad_norm 1.0, optim adamw_torch_fused, "
        "seed 42"
    ]
    assert experiment.notes.ignored == ["do_train", "output_dir", "plot_loss"]


def test_its_defaults(edit: Edit) -> None:
    given = ("lora_rank", "lora_target", "use_rslora", "cutoff_len", "learning_rate", "bf16")
    given += ("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs")
    given += ("lr_scheduler_type", "warmup_ratio", "stage", "finetuning_type", "quantization_bit")
    edit("factory.yaml", **dict.fromkeys(given))
    values = read_file(FILE).values
    assert {key: values.get(key) for key in ("adapter.rank", "adapter.alpha")} == {
        "adapter.rank": 8,
        "adapter.alpha": 16.0,
    }
    assert values["adapter.targets"] == "all-linear"
    assert values["adapter.scaling"] == "lora"
    assert values["data.sequence_length"] == 2048
    assert (values["train.batch_size"], values["train.accumulation"]) == (8, 1)
    assert (values["train.epochs"], values["train.schedule"]) == (3.0, "linear")
    assert (values["optimizer.lr"], values["precision"]) == (5e-5, "float32")
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
    assert says in "\n".join(experiment.notes.differs)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"stage": "dpo"}, "stage: dpo trains on preferences, study train on targets"),
    ({"stage": "rm"}, "stage: rm trains a reward model"),
    ({"stage": "x"}, "stage: x is unknown"),
    ({"finetuning_type": "full"}, "finetuning_type=full is not LoRA"),
    ({"export_dir": "out"}, "export_dir exports a model and trains nothing"),
    ({"stage": None, "dataset": None}, "neither stage nor dataset, so it trains nothing"),
    ({"peft_config": {"name": "lora"}}, "has the form of LLaMA-Factory's v1"),
    ({"pissa_init": True}, "pissa_init changes the base's weights"),
    ({"quantization_bit": 3}, "quantization_bit=3 is neither 8 nor 4"),
    ({"dataset": "nothing"}, "'nothing': choose from chats, roles, more"),
    ({"lora_rank": "many"}, "lora_rank='many' is not a number"),
    ({"warmup_ratio": 1}, "warmup_ratio=1 leaves no step after the warm-up"),
    ({"warmup_steps": 2}, "warmup_steps and warmup_ratio contradict each other"),
    ({"warmup_ratio": None, "warmup_steps": 1.5}, "is neither a number of steps nor a share"),
]


@pytest.mark.parametrize(("keys", "says"), REFUSED, ids=[says[:40] for _, says in REFUSED])
def test_what_is_not_lora_on_targets_gets_one_line(
    study_cli: Cli, edit: Edit, keys: dict[str, Any], says: str
) -> None:
    edit("factory.yaml", **keys)
    ended = study_cli("import-config", "factory.yaml")
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert says in line
    assert not Path("conf").exists()
