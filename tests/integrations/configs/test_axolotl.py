"""Axolotl's YAML."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from study.integrations.configs import read_file
from study.store import StudyTables

Cli = Callable[..., Any]
Edit = Callable[..., None]
Trained = Callable[..., StudyTables]
FILE = Path("axolotl.yml")


def test_axolotl(study_cli: Cli, trained: Trained) -> None:
    experiment = read_file(FILE)
    assert experiment.groups == {"model": "hf", "data": "file", "optimizer": "adamw"}
    assert experiment.values == {
        "model.path": "org/model-1b",
        "model.quant_bits": 4,
        "data.sequence_length": 64,
        "data.format": "context_target",
        "data.path": str(Path("train.jsonl").resolve()),
        "adapter.rank": 32,
        "adapter.alpha": 16.0,
        "adapter.scaling": "rslora",
        "adapter.targets": "all-linear",
        "adapter.dropout": 0.05,
        "optimizer.lr": 2e-4,
        "optimizer.weight_decay": 0.01,
        "optimizer.loraplus_lr_ratio": 16.0,
        "optimizer.betas": [0.9, 0.95],
        "train.batch_size": 2,
        "train.accumulation": 3,
        "train.epochs": 2.0,
        "train.clip": 0.5,
        "train.schedule": "cosine",
        "train.warmup": 0.1,
        "precision": "bf16",
        "seed": 7,
    }
    imported = study_cli("import-config", str(FILE), "--name", "mine")
    tables = trained(imported.out, "precision=float32")
    assert tables.cells[
        ["rank", "scaling", "lr", "schedule", "weight_decay", "seed"]
    ].values.tolist() == [[32.0, "rslora", 2e-4, "cosine", 0.01, 7]]


DATASETS: dict[str, tuple[Any, dict[str, str], str]] = {
    "alpaca": ("alpaca", {"data.format": "alpaca"}, ""),
    "alpaca's chat": ("alpaca:chat", {"data.format": "alpaca"}, "prompts are those of alpaca"),
    "completion": ("completion", {"data.format": "completion"}, "longer texts are cut"),
    "chat_template": ("chat_template", {"data.format": "messages"}, ""),
    "sharegpt": ("sharegpt", {"data.format": "messages"}, ""),
    "named fields": (
        {
            "field_instruction": "instruction",
            "field_output": "output",
            "format": "Q: {instruction}",
        },
        {"data.format": "alpaca"},
        "datasets[0].type.format: Q: {instruction} (Alpaca's prompt)",
    ),
    "other fields": (
        {"field_instruction": "q", "field_output": "a"},
        {},
        "convert its rows to one of data.format, then give data.path=...",
    ),
    "segments": ("input_output", {}, "datasets[0]: train.jsonl of type input_output (convert"),
    "none": (None, {}, "of type null (convert"),
}


@pytest.mark.parametrize("case", DATASETS)
def test_types_of_datasets(edit: Edit, case: str) -> None:
    kind, values, says = DATASETS[case]
    edit("axolotl.yml", datasets=[{"path": "train.jsonl", "type": kind}])
    experiment = read_file(FILE)
    found = {key: value for key, value in experiment.values.items() if key == "data.format"}
    assert found == values
    assert ("data.path" in experiment.values) == bool(values)
    assert says in "\n".join(experiment.differs)


CHAT = {"path": "org/chats", "type": "chat_template"}
TEMPLATES: dict[str, tuple[dict[str, Any], dict[str, Any], str | None, str]] = {
    "the tokenizer's": ({"chat_template": "tokenizer_default"}, {}, None, ""),
    "chatml": ({"chat_template": "chatml"}, {}, "chatml", ""),
    "of the dataset": ({"chat_template": "llama3"}, {"chat_template": "chatml"}, "chatml", ""),
    "of the old key": ({}, {"type": "sharegpt", "conversation": "chatml"}, "chatml", ""),
    "of Axolotl": ({"chat_template": "llama3"}, {}, None, "chat_template: llama3, of Axolotl"),
    "a file": ({"chat_template_jinja": "mine.jinja"}, {}, "mine.jinja", ""),
    "text": ({"chat_template_jinja": "{{ x }}"}, {}, None, "write the template to a file"),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_chat_templates(edit: Edit, case: str) -> None:
    keys, of_dataset, template, says = TEMPLATES[case]
    Path("mine.jinja").write_text("{{ messages }}")
    edit("axolotl.yml", datasets=[{**CHAT, **of_dataset}], **keys)
    experiment = read_file(FILE)
    found = experiment.values.get("data.chat_template")
    assert (found and Path(found).name) == template
    assert says in "\n".join(experiment.differs)
    assert bool(says) == any("template" in note for note in experiment.differs)


MESSAGES: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "from and value": (
        {
            "field_messages": "conversations",
            "message_property_mappings": {"role": "from", "content": "value"},
            "roles": {"user": ["human"], "assistant": ["gpt"]},
            "roles_to_train": ["assistant"],
            "train_on_eos": "turn",
        },
        "messages",
        "",
    ),
    "the old keys": (
        {"message_field_role": "from", "message_field_content": "value"},
        "messages",
        "",
    ),
    "another column": ({"field_messages": "turns"}, None, "datasets[0].field_messages: turns"),
    "other properties": (
        {"message_property_mappings": {"role": "who", "content": "what"}},
        None,
        'messages with {"content": "what", "role": "who"}',
    ),
    "other roles": ({"roles": {"user": ["customer"]}}, "messages", "datasets[0].roles"),
    "other turns": ({"roles_to_train": ["user"]}, "messages", "datasets[0].roles_to_train"),
    "a system message": ({"field_system": "system"}, "messages", ""),
    "another system message": ({"field_system": "rules"}, "messages", "datasets[0].field_system"),
    "all ends": ({"train_on_eos": "all"}, "messages", "datasets[0].train_on_eos: all"),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_fields_of_conversations(edit: Edit, case: str) -> None:
    keys, format_, says = MESSAGES[case]
    edit("axolotl.yml", datasets=[{**CHAT, **keys}])
    experiment = read_file(FILE)
    assert experiment.values.get("data.format") == format_
    notes = [note for note in experiment.differs if note.startswith("datasets[0]")]
    assert says in "\n".join(notes)
    assert bool(says) == bool(notes)


def test_a_dataset_on_the_hub(edit: Edit) -> None:
    one = {**CHAT, "split": "train[:20%]", "name": "english", "trust_remote_code": True}
    edit("axolotl.yml", datasets=[one, CHAT], val_set_size=0.1)
    experiment = read_file(FILE)
    data = {key: value for key, value in experiment.values.items() if key.startswith("data.")}
    assert data == {
        "data.sequence_length": 64,
        "data.format": "messages",
        "data.path": "org/chats",
        "data.split": "train[:20%]",
        "data.subset": "english",
    }
    said = "\n".join(experiment.differs)
    assert "datasets[1]: {" in said
    assert "val_set_size: 0.1 (a share of rows that are not here" in said


def test_a_missing_file_has_to_be_given(study_cli: Cli, edit: Edit) -> None:
    edit("axolotl.yml", datasets=[{"path": "data/missing.parquet", "type": "alpaca"}])
    imported = study_cli("import-config", str(FILE))
    assert "datasets[0].path: data/missing.parquet is no file here: give data.p" in imported.err
    assert "path" not in Path("conf/data/axolotl.yaml").read_text()


WARMUP: dict[str, tuple[dict[str, Any], float]] = {
    "a ratio": ({"warmup_ratio": 0.2}, 0.2),
    "steps": ({"warmup_ratio": None, "warmup_steps": 5}, 5),
    "steps as a ratio": ({"warmup_ratio": None, "warmup_steps": 0.1}, 0.1),
    "none": ({"warmup_ratio": 0}, 0),
    "one step, of which Axolotl makes two": ({"warmup_ratio": None, "warmup_steps": 1}, 2),
    "Axolotl's default": ({"warmup_ratio": None}, 0.03),
    "a schedule without": ({"lr_scheduler": "constant"}, 0),
    "a constant schedule with": ({"lr_scheduler": "constant_with_warmup"}, 0.1),
}


@pytest.mark.parametrize("case", WARMUP)
def test_warmup(edit: Edit, case: str) -> None:
    keys, warmup = WARMUP[case]
    edit("axolotl.yml", **keys)
    found = read_file(FILE).values["train.warmup"]
    assert (found, type(found)) == (warmup, type(warmup))


def test_the_total_batch_decides_only_without_accumulation(edit: Edit) -> None:
    edit("axolotl.yml", batch_size=12)
    experiment = read_file(FILE)
    assert experiment.values["train.accumulation"] == 3
    assert "batch_size (gradient_accumulation_steps decides)" in experiment.ignored
    edit("axolotl.yml", gradient_accumulation_steps=None)
    assert read_file(FILE).values["train.accumulation"] == 6


def test_steps_come_before_epochs(edit: Edit) -> None:
    edit("axolotl.yml", max_steps=7)
    experiment = read_file(FILE)
    assert experiment.values["train.steps"] == 7
    assert "train.epochs" not in experiment.values
    assert "num_epochs (max_steps decides)" in experiment.ignored


def test_defaults_of_axolotl_are_used_and_listed(edit: Edit) -> None:
    silent = ("micro_batch_size", "lr_scheduler", "warmup_ratio", "max_grad_norm", "bf16", "seed")
    edit("axolotl.yml", **dict.fromkeys(silent))
    experiment = read_file(FILE)
    assert experiment.values["precision"] == "bf16"
    assert experiment.defaults == [
        "seed: Axolotl draws adapters without one (seed=0)",
        "Axolotl's defaults: micro_batch_size 1, max_grad_norm 1.0, lr_scheduler cosine, "
        "warmup_ratio 0.03 (at most 100 steps), bf16 auto",
    ]
