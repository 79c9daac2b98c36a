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


def test_axolotl(study_cli: Cli, trained: Trained) -> None:
    experiment = read_file(Path("axolotl.yml"))
    assert experiment.groups == {"model": "hf", "data": "jsonl", "optimizer": "adamw"}
    # 54 rows, 2 epochs, 6 rows per step: 18 steps, a tenth of them warm-up.
    assert experiment.values == {
        "model.path": "org/model-1b",
        "model.quant_bits": 4,
        "data.sequence_length": 64,
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
        "train.steps": 18,
        "train.clip": 0.5,
        "train.schedule": "cosine",
        "train.warmup": 1,
        "precision": "bf16",
        "seed": 7,
    }
    assert {note.partition(":")[0] for note in experiment.left_out} == {
        *("datasets[0].type.format", "optimizer", "sample_packing", "flash_attention", "output_dir")
    }
    imported = study_cli("import-config", "axolotl.yml", "--name", "mine")
    tables = trained(imported.out, "precision=float32")
    assert tables.cells[
        ["rank", "scaling", "lr", "schedule", "weight_decay", "seed"]
    ].values.tolist() == [[32.0, "rslora", 2e-4, "cosine", 0.01, 7]]


@pytest.mark.parametrize(
    "kind",
    ["alpaca", "completion", "chat_template", {"field_instruction": "q", "field_output": "a"}],
)
def test_datasets_of_other_types_are_left_for_the_user_to_convert(
    study_cli: Cli, edit: Edit, kind: Any
) -> None:
    edit("axolotl.yml", datasets=[{"path": "train.jsonl", "type": kind}])
    imported = study_cli("import-config", "axolotl.yml")
    assert "a row must hold context and target: convert it, then give data.path=..." in imported.err
    assert "path" not in Path("conf/data/axolotl.yaml").read_text()


def test_defaults_of_axolotl_are_listed(study_cli: Cli, edit: Edit) -> None:
    silent = ("micro_batch_size", "lr_scheduler", "warmup_ratio", "max_grad_norm")
    edit("axolotl.yml", **dict.fromkeys(silent))
    imported = study_cli("import-config", "axolotl.yml")
    defaults = (
        "adam_beta1 0.9, micro_batch_size 1, max_grad_norm 1.0, lr_scheduler cosine, warmup_steps 1"
    )
    assert f"not in the file: Axolotl's defaults: {defaults}" in imported.err


def test_a_local_base_and_a_dataset_on_the_hub(study_cli: Cli, edit: Edit) -> None:
    Path("base").mkdir()
    dataset = {
        "path": "org/data",
        "type": {"field_instruction": "context", "field_output": "target"},
    }
    edit("axolotl.yml", base_model="./base", datasets=[dataset, dataset], val_set_size=0.1)
    experiment = read_file(Path("axolotl.yml"))
    assert experiment.values["model.path"] == str(Path("base").resolve())
    assert "data.path" not in experiment.values
    said = "\n".join(experiment.left_out)
    for note in (
        "datasets[0].path: org/data not found",
        "datasets[1]: {",
        "val_set_size: 0.1",
    ):
        assert note in said
