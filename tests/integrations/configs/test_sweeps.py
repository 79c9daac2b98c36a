"""PEFT's configurations, sweeps over imported ones, and the files that are written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import LoraConfig

from study.integrations.configs import read_file
from study.store import StudyTables

Cli = Callable[..., Any]
Edit = Callable[..., None]
Trained = Callable[..., StudyTables]


def test_peft(study_cli: Cli, trained: Trained, tmp_path: Path) -> None:
    config = LoraConfig(
        r=16, lora_alpha=8, use_rslora=True, target_modules=["q_proj"], rank_pattern={"v_proj": 4}
    )
    config.task_type = "CAUSAL_LM"
    config.base_model_name_or_path = "org/model"
    config.save_pretrained(tmp_path / "saved")
    imported = study_cli("import-config", "saved/adapter_config.json", "--name", "saved")
    assert imported.code == 0, imported.err
    # PEFT writes all of its defaults; they differ in nothing.
    assert read_file(Path("saved/adapter_config.json")).notes.differs == [
        'rank_pattern: {"v_proj": 4} (one rank for all layers)'
    ]
    cells = trained(imported.out).cells
    assert cells[["rank", "alpha", "scaling", "targets"]].values.tolist() == [
        [16.0, 8.0, "rslora", "q_proj"]
    ]


def test_sweep_from_trains_ranks_and_rules_in_one_line(study_cli: Cli, trained: Trained) -> None:
    imported = study_cli("sweep-from", "rslora.yaml", "--ranks", "2,4", "--seeds", "0,1")
    assert imported.code == 0, imported.err
    cells = trained(imported.out).cells
    assert sorted(zip(cells["scaling"], cells["rank"], cells["seed"], strict=True)) == [
        (rule, rank, seed) for rule in ("lora", "rslora") for rank in (2.0, 4.0) for seed in (0, 1)
    ]
    assert (
        list(trained(imported.out, "adapter.rank=3", "seed=0", "name=x").cells["status"])
        == ["complete"] * 8
    )


def test_a_number_among_the_rules_is_an_exponent(study_cli: Cli, trained: Trained) -> None:
    imported = study_cli("sweep-from", "rslora.yaml", "--ranks", "4", "--rules", "rslora,0.75")
    cells = trained(imported.out, "probes.steps=null").cells.set_index("scaling")
    assert cells["gamma"].to_dict() == pytest.approx({"rslora": 16 / 2, "power": 16 / 4**0.75})


def test_a_sweep_file_of_axolotl(study_cli: Cli, edit: Edit, trained: Trained) -> None:
    lists = {
        "lora_r": [2, 3],
        "peft_use_rslora": [True, False],
        "optimizer": ["sgd", "adamw_torch"],
    }
    lists |= {"lora_target_modules": [["q_proj", "v_proj"], ["k_proj"]]}
    edit("axolotl.yml", lora_target_linear=None, lora_target_modules=["q_proj"], adam_beta2=None)
    Path("sweep.yml").write_text(yaml.safe_dump(lists))
    imported = study_cli("import-config", "axolotl.yml", "--sweep", "sweep.yml", "--name", "grid")
    assert imported.code == 0, imported.err
    written = yaml.safe_load(Path("conf/experiment/grid.yaml").read_text())
    assert written["hydra"]["sweeper"]["params"] == {
        "adapter.rank": "2,3",
        "adapter.scaling": "rslora,lora",
        "optimizer": "sgd,adamw",
        "adapter.targets": "[q_proj,v_proj],[k_proj]",
    }
    cells = trained(imported.out, "precision=float32", "probes.steps=[0]", "probes.sites=[A]").cells
    assert len(cells) == 16
    assert len(cells[["rank", "scaling", "optimizer", "targets"]].drop_duplicates()) == 16


def test_an_existing_file_is_kept_unless_forced(study_cli: Cli) -> None:
    study_cli("import-config", "rslora.yaml")
    mine = Path("conf/experiment/rslora.yaml")
    mine.write_text("# mine\n")
    assert (
        "already exists: give another --name, or --force"
        in study_cli("import-config", "rslora.yaml").err
    )
    assert mine.read_text() == "# mine\n"
    assert study_cli("import-config", "rslora.yaml", "--force").code == 0
    assert "lora" in mine.read_text()


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
def test_weights_of_experts(tmp_path: Path, modules: object, targets: object) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**PEFT, "target_modules": modules, "target_parameters": EXPERTS}))
    experiment = read_file(path)
    assert experiment.values["adapter.targets"] == targets
    assert experiment.notes.differs == []


def test_a_linear_layer_may_be_selected_by_its_weight(tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    weights = ["shared_experts.up_proj.weight", *EXPERTS]
    path.write_text(json.dumps({**PEFT, "target_modules": [], "target_parameters": weights}))
    assert read_file(path).values["adapter.targets"] == ["shared_experts.up_proj", *EXPERTS]
