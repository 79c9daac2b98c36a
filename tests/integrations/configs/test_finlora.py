"""FinLoRA's YAML, and entries of its finetune_configs.json."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from study.integrations.configs import read_file
from study.store import StudyTables

Cli = Callable[..., Any]
Edit = Callable[..., None]
Trained = Callable[..., StudyTables]
SEED = Path(__file__).parents[4] / "shared/data/finlora/rslora_config.yaml"


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(
            SEED,
            marks=pytest.mark.skipif(not SEED.exists(), reason="FinLoRA's file is not in shared/"),
        ),
        Path("rslora.yaml"),
    ],
    ids=["verbatim", "same keys"],
)
def test_the_yaml_trains_on_tiny(study_cli: Cli, trained: Trained, seed: Path) -> None:
    imported = study_cli("import-config", str(seed))
    assert imported.code == 0, imported.err
    assert imported.out == f"study train --config-dir=conf experiment={seed.stem}\n"
    assert "xbrl_extract_train.jsonl not found: data=xbrl_extract is used instead" in imported.err
    assert yaml.safe_load(Path(f"conf/model/{seed.stem}.yaml").read_text()) == {
        "defaults": ["hf", "_self_"],
        "path": "meta-llama/Llama-3.1-8B-Instruct",
        "quant_bits": 8,
    }
    cells = trained(imported.out).cells
    assert cells[["model", "data", "rank", "alpha", "scaling", "status"]].values.tolist() == [
        ["tiny", "xbrl_extract", 64.0, 16.0, "rslora", "complete"]
    ]


def test_an_entry_of_finetune_configs(study_cli: Cli, trained: Trained) -> None:
    entry = "formula_8bits_r8_rslora"
    imported = study_cli("import-config", "finetune_configs.json", "--entry", entry)
    assert imported.code == 0, imported.err
    experiment = read_file(Path("finetune_configs.json"), entry)
    # 60 rows, of which 2 % are held out.
    assert experiment.values == {
        "model.path": "meta-llama/Llama-3.1-8B-Instruct",
        "model.quant_bits": 8,
        "data.sequence_length": 4096,
        "data.format": "context_target",
        "data.path": str(Path("train.jsonl").resolve()),
        "data.heldout": 1,
        "adapter.rank": 8,
        "adapter.alpha": 16.0,
        "adapter.scaling": "rslora",
        "adapter.targets": ["q_proj", "v_proj", "k_proj"],
        "adapter.dropout": 0.05,
        "optimizer.lr": 1e-4,
        "optimizer.weight_decay": 0.0,
        "train.batch_size": 8,
        "train.accumulation": 2,
        "train.epochs": 4.0,
        "train.clip": 1.0,
        "train.schedule": "cosine",
        "train.warmup": 10,
        "precision": "bf16",
    }
    for note in (
        "FinLoRA's finetune.py sets ",
        "lora_dropout 0.05",
        "val_set_size 0.02",
        "max_grad_norm 1.0",
    ):
        assert note in imported.err
    cells = trained(imported.out, "precision=float32").cells
    assert cells[
        ["rank", "scaling", "targets", "batch_size", "accumulation", "clip"]
    ].values.tolist() == [[8.0, "rslora", "q_proj,v_proj,k_proj", 8, 2, 1.0]]


def test_settings_without_a_counterpart_are_listed(study_cli: Cli) -> None:
    imported = study_cli(
        "import-config", "finetune_configs.json", "--entry", "formula_4bits_r4_dora"
    )
    assert imported.code == 0, imported.err
    text = Path("conf/experiment/formula_4bits_r4_dora.yaml").read_text()
    for note in (
        "peft_use_dora: true (plain LoRA is trained)",
        "datasets[0].path: elsewhere/train.jsonl is no file here: give data.path=... when ",
        "datasets[0].type.format: [INST] {instruction} [/INST] (the text is the prompt and the ",
        "val_set_size: 0.02 (a share of rows that are not here",
        "deepspeed: deepspeed_configs/zero1.json (one device: with n GPUs, a step ",
        "optimizer: paged_adamw_8bit (adamw, with states in 32 bits)",
    ):
        assert f"\n  {note}" in imported.err
        assert f"\n#   {note}" in text
    ran = study_cli(*shlex.split(imported.out)[1:], "model=tiny", "data.sequence_length=48")
    assert ran.code == 2
    assert "data.path is not set: give data.path=" in ran.err
