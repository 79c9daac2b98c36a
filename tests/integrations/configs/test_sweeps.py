"""PEFT's configurations of adapters, sweeps, and the files that are written."""

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


def test_an_adapter_that_peft_saved(study_cli: Cli, trained: Trained) -> None:
    config = LoraConfig(
        r=16, lora_alpha=8, use_rslora=True, target_modules=["q_proj"], rank_pattern={"v_proj": 4}
    )
    config.task_type = "CAUSAL_LM"
    config.base_model_name_or_path = "org/model"
    config.save_pretrained("saved")
    imported = study_cli("import-config", "saved/adapter_config.json", "--name", "saved")
    assert imported.code == 0, imported.err
    # PEFT writes all of its defaults; they differ in nothing.
    assert read_file(Path("saved/adapter_config.json")).differs == [
        'rank_pattern: {"v_proj": 4} (one rank for all layers)'
    ]
    cells = trained(imported.out).cells
    assert cells[["rank", "alpha", "scaling", "targets"]].values.tolist() == [
        [16.0, 8.0, "rslora", "q_proj"]
    ]


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.parametrize(
    ("modules", "parameters", "targets"),
    [
        (["q_proj"], EXPERTS, ["q_proj", *EXPERTS]),
        (None, EXPERTS, EXPERTS),
        (None, ["up_proj.weight", *EXPERTS], ["up_proj", *EXPERTS]),
        (None, None, ["q_proj", "v_proj"]),
        ("all-linear", EXPERTS, "all-linear"),
        (r".*\.(q|v)_proj", EXPERTS[:1], r"(.*\.(q|v)_proj)|(.*\.)?(mlp\.experts\.gate_up_proj)"),
    ],
)
def test_targets_and_weights_of_experts(
    edit: Edit, modules: Any, parameters: Any, targets: Any
) -> None:
    edit("adapter.yaml", target_modules=modules, target_parameters=parameters)
    experiment = read_file(Path("adapter.yaml"))
    assert experiment.values["adapter.targets"] == targets
    assert experiment.differs == []


def test_sweep_from_trains_ranks_and_rules_in_one_line(study_cli: Cli, trained: Trained) -> None:
    """A number among the rules is an exponent."""
    words = ("--ranks", "2,4", "--rules", "rslora,0.75", "--seeds", "0,1")
    imported = study_cli("sweep-from", "rslora.yaml", *words)
    assert imported.code == 0, imported.err
    cells = trained(imported.out, "probes.steps=null").cells
    gammas = {("rslora", r): 16 / r**0.5 for r in (2, 4)} | {
        ("power", r): 16 / r**0.75 for r in (2, 4)
    }
    for seed in (0, 1):
        found = cells[cells["seed"] == seed].set_index(["scaling", "rank"])["gamma"].to_dict()
        assert found == pytest.approx(gammas)


def test_a_sweep_file_of_axolotl(study_cli: Cli, edit: Edit, trained: Trained) -> None:
    lists = {"lora_r": [2, 3], "peft_use_rslora": [True, False]}
    lists |= {"optimizer": ["sgd", "adamw_torch"]}
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
    cells = trained(imported.out, "precision=float32", "probes.steps=null").cells
    assert len(cells[["rank", "scaling", "optimizer", "targets"]].drop_duplicates()) == 16


def test_an_existing_file_is_kept_unless_forced(study_cli: Cli) -> None:
    study_cli("import-config", "rslora.yaml")
    mine = Path("conf/experiment/rslora.yaml")
    mine.write_text("# mine\n")
    refused = study_cli("import-config", "rslora.yaml")
    assert "already exists: give another --name, or --force" in refused.err
    assert mine.read_text() == "# mine\n"
    assert study_cli("import-config", "rslora.yaml", "--force").code == 0
    assert "lora" in mine.read_text()
