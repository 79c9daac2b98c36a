"""Configurations of other tools, typed in as users have them, become experiments that run."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import LoraConfig

import study
from study.config.compose import CONF
from study.integrations.configs import read_file, write
from study.sweeps import run as sweep

Cli = Callable[..., Any]
SEED = Path(__file__).parents[4] / "shared/data/finlora/rslora_config.yaml"

# The YAML of FinLoRA's documentation of rsLoRA, key by key.
FINLORA_YAML = """\
use_rsLoRA: true
lora_rank: 64        # a comment
lora_alpha: 16
quant_bits: 8

dataset: "xbrl_extract_train.jsonl"
model_name: "meta-llama/Llama-3.1-8B-Instruct"
"""
FINLORA_JSON = {
    "formula_8bits_r8_rslora": {
        "base_model": "meta-llama/Llama-3.1-8B-Instruct",
        "dataset_path": "train.jsonl",
        "lora_r": 8,
        "quant_bits": 8,
        "learning_rate": 0.0001,
        "num_epochs": 4,
        "batch_size": 8,
        "gradient_accumulation_steps": 2,
        "peft_use_rslora": True,
    },
    "formula_4bits_r4_dora": {
        "base_model": "meta-llama/Llama-3.1-8B-Instruct",
        "dataset_path": "elsewhere/train.jsonl",
        "lora_r": 4,
        "quant_bits": 4,
        "lora_alpha": 32,
        "peft_use_dora": True,
    },
}
AXOLOTL = """\
base_model: org/model-1b
load_in_4bit: true
adapter: qlora
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
peft_use_rslora: true
loraplus_lr_ratio: 16
datasets:
  - path: train.jsonl
    ds_type: json
    type:
      field_instruction: context
      field_output: target
      format: "[INST] {instruction} [/INST]"
sequence_len: 64
sample_packing: true
micro_batch_size: 2
gradient_accumulation_steps: 3
num_epochs: 2
optimizer: paged_adamw_8bit
learning_rate: 2e-4
lr_scheduler: cosine
warmup_ratio: 0.1
weight_decay: 0.01
adam_beta2: 0.95
max_grad_norm: 0.5
bf16: auto
seed: 7
flash_attention: true
wandb_project:
output_dir: ./out
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jsonl: Path) -> None:
    """A folder with a configuration in each form beside the data that they name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text(jsonl.read_text())
    (tmp_path / "rslora.yaml").write_text(FINLORA_YAML)
    (tmp_path / "finetune_configs.json").write_text(json.dumps(FINLORA_JSON))
    (tmp_path / "axolotl.yml").write_text(AXOLOTL)


def changed(text: str, **keys: Any) -> str:
    """A YAML with some keys replaced; None removes one."""
    values = {**yaml.safe_load(text), **keys}
    return yaml.safe_dump({key: value for key, value in values.items() if value is not None})


def files() -> set[str]:
    return {str(path) for path in Path().rglob("*")}


def trained(study_cli: Cli, line: str, *more: str) -> Any:
    """Run the line that was printed, and give the study's tables."""
    ran = study_cli(
        *shlex.split(line)[1:], "model=tiny", "train.steps=2", "data.sequence_length=48", *more
    )
    assert ran.code == 0, ran.err
    name = next(
        part.partition("=")[2] for part in shlex.split(line) if part.startswith("experiment=")
    )
    return study.load(f"results/{name}")


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(
            SEED, marks=pytest.mark.skipif(not SEED.exists(), reason="FinLoRA's file is not here")
        ),
        Path("rslora.yaml"),
    ],
    ids=["verbatim", "same keys"],
)
def test_finloras_yaml_is_a_run_on_tiny(study_cli: Cli, seed: Path) -> None:
    imported = study_cli("import-config", str(seed))
    assert imported.code == 0, imported.err
    assert imported.out == f"study train --config-dir=conf experiment={seed.stem}\n"
    assert "xbrl_extract_train.jsonl is not here, so data=xbrl_extract stands in" in imported.err
    assert yaml.safe_load(Path(f"conf/model/{seed.stem}.yaml").read_text()) == {
        "defaults": ["hf", "_self_"],
        "path": "meta-llama/Llama-3.1-8B-Instruct",
        "quant_bits": 8,
    }
    cells = trained(study_cli, imported.out).cells
    assert cells[["model", "data", "rank", "alpha", "scaling", "status"]].values.tolist() == [
        ["tiny", "xbrl_extract", 64.0, 16.0, "rslora", "complete"]
    ]


def test_the_file_itself_is_read_where_it_lies_beside(study_cli: Cli) -> None:
    Path("xbrl_extract_train.jsonl").write_text(Path("train.jsonl").read_text())
    line = study_cli("import-config", "rslora.yaml").out
    assert list(trained(study_cli, line).cells["data"]) == [
        str(Path("xbrl_extract_train.jsonl").resolve())
    ]


def test_an_entry_of_finetune_configs(study_cli: Cli) -> None:
    entry = "formula_8bits_r8_rslora"
    imported = study_cli("import-config", "finetune_configs.json", "--entry", entry)
    assert imported.code == 0, imported.err
    experiment = read_file(Path("finetune_configs.json"), entry)
    # 60 rows of which 2 % are held out, 4 epochs, 16 a step.
    assert experiment.values == {
        "model.path": "meta-llama/Llama-3.1-8B-Instruct",
        "model.quant_bits": 8,
        "data.sequence_length": 4096,
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
        "train.steps": 15,
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
    cells = trained(study_cli, imported.out, "precision=float32").cells
    assert cells[
        ["rank", "scaling", "targets", "batch_size", "accumulation", "clip"]
    ].values.tolist() == [[8.0, "rslora", "q_proj,v_proj,k_proj", 8, 2, 1.0]]


def test_what_an_entry_has_and_a_study_has_not_is_listed(study_cli: Cli) -> None:
    imported = study_cli(
        "import-config", "finetune_configs.json", "--entry", "formula_4bits_r4_dora"
    )
    assert imported.code == 0, imported.err
    text = Path("conf/experiment/formula_4bits_r4_dora.yaml").read_text()
    for note in (
        "peft_use_dora: true (plain LoRA is trained)",
        "datasets[0].path: elsewhere/train.jsonl is no file here: give data.path=... when you train",
        "num_epochs: 4 (of data that is not here: give train.steps=...)",
        "optimizer: paged_adamw_8bit (adamw, with states in 32 bits)",
    ):
        assert f"no counterpart here: {note}" in imported.err
        assert f"#   {note}" in text
    ran = study_cli(*shlex.split(imported.out)[1:], "model=tiny", "data.sequence_length=48")
    assert ran.code == 2
    assert "data=jsonl reads a file: add data.path=" in ran.err


def test_axolotl(study_cli: Cli) -> None:
    experiment = read_file(Path("axolotl.yml"))
    assert experiment.groups == {"model": "hf", "data": "jsonl", "optimizer": "adamw"}
    # 54 rows, 2 epochs, 6 a step: 18 steps, a tenth of them warmup.
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
    tables = trained(study_cli, imported.out, "precision=float32")
    assert tables.cells[
        ["rank", "scaling", "lr", "schedule", "weight_decay", "seed"]
    ].values.tolist() == [[32.0, "rslora", 2e-4, "cosine", 0.01, 7]]


@pytest.mark.parametrize(
    "kind",
    ["alpaca", "completion", "chat_template", {"field_instruction": "q", "field_output": "a"}],
)
def test_rows_that_hold_no_context_and_target_are_said_to(study_cli: Cli, kind: Any) -> None:
    Path("axolotl.yml").write_text(
        changed(AXOLOTL, datasets=[{"path": "train.jsonl", "type": kind}])
    )
    imported = study_cli("import-config", "axolotl.yml")
    assert "a row must hold context and target: convert it, then give data.path=..." in imported.err
    assert not Path("conf/data/axolotl.yaml").read_text().count("path")


def test_what_axolotl_would_fill_in_is_told(study_cli: Cli) -> None:
    text = changed(
        AXOLOTL, micro_batch_size=None, lr_scheduler=None, warmup_ratio=None, max_grad_norm=None
    )
    Path("axolotl.yml").write_text(text)
    imported = study_cli("import-config", "axolotl.yml")
    defaults = (
        "adam_beta1 0.9, micro_batch_size 1, max_grad_norm 1.0, lr_scheduler cosine, warmup_steps 1"
    )
    assert f"not in the file: Axolotl's defaults: {defaults}" in imported.err


def test_a_local_base_and_a_dataset_on_the_hub(study_cli: Cli) -> None:
    Path("base").mkdir()
    dataset = {
        "path": "org/data",
        "type": {"field_instruction": "context", "field_output": "target"},
    }
    Path("axolotl.yml").write_text(
        changed(AXOLOTL, base_model="./base", datasets=[dataset, dataset], val_set_size=0.1)
    )
    experiment = read_file(Path("axolotl.yml"))
    assert experiment.values["model.path"] == str(Path("base").resolve())
    assert "data.path" not in experiment.values
    said = "\n".join(experiment.left_out)
    for note in (
        "datasets[0].path: org/data is no file here",
        "datasets[1]: {",
        "val_set_size: 0.1",
    ):
        assert note in said


def test_peft(study_cli: Cli, tmp_path: Path) -> None:
    config = LoraConfig(
        r=16, lora_alpha=8, use_rslora=True, target_modules=["q_proj"], rank_pattern={"v_proj": 4}
    )
    config.task_type = "CAUSAL_LM"
    config.base_model_name_or_path = "org/model"
    config.save_pretrained(tmp_path / "saved")
    imported = study_cli("import-config", "saved/adapter_config.json", "--name", "saved")
    assert imported.code == 0, imported.err
    # Only what asks for something is told: PEFT writes all of its defaults out.
    assert [line for line in imported.err.splitlines() if line.startswith("no counterpart")] == [
        'no counterpart here: rank_pattern: {"v_proj": 4} (one rank for all layers)'
    ]
    cells = trained(study_cli, imported.out).cells
    assert cells[["rank", "alpha", "scaling", "targets"]].values.tolist() == [
        [16.0, 8.0, "rslora", "q_proj"]
    ]


def test_sweep_from_trains_ranks_and_rules_in_one_line(study_cli: Cli) -> None:
    imported = study_cli("sweep-from", "rslora.yaml", "--ranks", "2,4", "--seeds", "0,1")
    assert imported.code == 0, imported.err
    cells = trained(study_cli, imported.out).cells
    assert sorted(zip(cells["scaling"], cells["rank"], cells["seed"], strict=True)) == [
        (rule, rank, seed) for rule in ("lora", "rslora") for rank in (2.0, 4.0) for seed in (0, 1)
    ]
    assert (
        list(trained(study_cli, imported.out, "adapter.rank=3", "seed=0", "name=x").cells["status"])
        == ["complete"] * 8
    )


def test_packs_in_other_processes_find_the_experiment(study_cli: Cli) -> None:
    line = study_cli("sweep-from", "rslora.yaml", "--ranks", "2,3").out
    tables = trained(
        study_cli, line, "pack.max_cells=2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"
    )
    assert list(tables.cells["status"]) == ["complete"] * 4


def test_axolotls_sweep_is_a_sweep(study_cli: Cli) -> None:
    lists = {
        "lora_r": [2, 3],
        "peft_use_rslora": [True, False],
        "optimizer": ["sgd", "adamw_torch"],
    }
    lists |= {"lora_target_modules": [["q_proj", "v_proj"], ["k_proj"]]}
    base = changed(
        AXOLOTL, lora_target_linear=None, lora_target_modules=["q_proj"], adam_beta2=None
    )
    Path("axolotl.yml").write_text(base)
    Path("sweep.yml").write_text(yaml.safe_dump(lists))
    imported = study_cli("import-config", "axolotl.yml", "--sweep", "sweep.yml", "--name", "grid")
    assert imported.code == 0, imported.err
    params = yaml.safe_load(Path("conf/experiment/grid.yaml").read_text())["hydra"]["sweeper"][
        "params"
    ]
    assert params == {
        "adapter.rank": "2,3",
        "adapter.scaling": "rslora,lora",
        "optimizer": "sgd,adamw",
        "adapter.targets": "[q_proj,v_proj],[k_proj]",
    }
    cells = trained(
        study_cli, imported.out, "precision=float32", "probes.steps=[0]", "probes.sites=[A]"
    ).cells
    assert len(cells) == 16
    assert len(cells[["rank", "scaling", "optimizer", "targets"]].drop_duplicates()) == 16


BAD = {
    "no rank": (changed(FINLORA_YAML, lora_rank=None), "lora_rank is missing"),
    "no model, no data": (
        changed(FINLORA_YAML, model_name=None, dataset=None),
        "model_name, dataset are missing",
    ),
    "text for a rank": (changed(FINLORA_YAML, lora_rank="many"), "lora_rank='many' is no number"),
    "half a rank": (changed(FINLORA_YAML, lora_rank=4.5), "lora_rank=4.5 is no whole number"),
    "rank 0": (changed(FINLORA_YAML, lora_rank=0), "adapter.rank=0 is no rank"),
    "maybe": (
        changed(FINLORA_YAML, use_rsLoRA="maybe"),
        "use_rsLoRA='maybe' is neither true nor false",
    ),
    "3 bits": (changed(FINLORA_YAML, quant_bits=3), "quant_bits=3 is neither 8 nor 4"),
    "bits twice": (
        changed(FINLORA_YAML, load_in_4bit=True),
        "quant_bits: 8 and load_in_4bit: true contradict",
    ),
    "both bits": (
        changed(AXOLOTL, load_in_8bit=True, adapter="lora"),
        "load_in_8bit: true and load_in_4bit: true contradict each other",
    ),
    "qlora in 8": (
        changed(AXOLOTL, load_in_8bit=True, load_in_4bit=False),
        "adapter: qlora and load_in_8bit contradict",
    ),
    "qlora in 16": (
        changed(AXOLOTL, load_in_4bit=None),
        "adapter: qlora and no load_in_4bit contradict",
    ),
    "ia3": (changed(AXOLOTL, adapter="ia3"), "'ia3': choose from lora, qlora"),
    "full": (
        changed(AXOLOTL, adapter=None, load_in_4bit=None),
        "adapter is missing, so all weights are trained",
    ),
    "dpo": (changed(AXOLOTL, rl="dpo"), "rl trains on preferences"),
    "no targets": (changed(AXOLOTL, lora_target_linear=None), "lora_target_modules is missing"),
    "no data": (changed(AXOLOTL, datasets=None), "datasets is missing"),
    "data of a name": (changed(AXOLOTL, datasets="alpaca"), "is no list of datasets"),
    "batch of 0": (
        changed(AXOLOTL, micro_batch_size=0),
        "micro_batch_size=0 is no count: give at least 1",
    ),
    "no epochs": (changed(AXOLOTL, num_epochs=0), "num_epochs=0.0 is no training"),
    "dropout": (changed(AXOLOTL, lora_dropout=1.5), "adapter.dropout=1.5 is no probability"),
    "no yaml": ("a: [1, 2", "is no YAML"),
    "a list": ("- 1\n- 2\n", "holds list and no keys"),
    "another form": ("color: red\n", "has none of the forms that are read"),
    "peft's ia3": ('{"peft_type": "IA3"}', "peft_type='IA3' is no LoRA adapter"),
}


@pytest.mark.parametrize("bad", BAD)
def test_mistakes_get_one_line_and_write_nothing(
    study_cli: Cli, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    text, says = BAD[bad]
    Path("bad.yaml").write_text(text)
    before = files()
    monkeypatch.setattr(sweep, "load_base", lambda *_: pytest.fail("a model was loaded"))
    ran = study_cli("import-config", "bad.yaml")
    assert ran.code == 2
    assert len(ran.err.strip().splitlines()) == 1, ran.err
    assert says in ran.err
    assert files() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["import-config", "finetune_configs.json"], "has 2 entries: choose one with --entry, out of formula_8bits"),
        (["import-config", "finetune_configs.json", "--entry", "x"], "'x': choose from formula_8bits_r8_rslora,"),
        (["import-config", "rslora.yaml", "--entry", "x"], "has no entry 'x': leave out --entry"),
        (["import-config", "nothing.yaml"], "nothing.yaml can't be read (No such file or directory)"),
        (["import-config", "broken.json"], "broken.json is no JSON"),
        (["import-config", "rslora.yaml", "--name", "quick"], "experiment=quick is the toolkit's own"),
        (["import-config", "rslora.yaml", "--to", "train.jsonl"], "can't write"),
        (["sweep-from", "rslora.yaml", "--rules", "lorra"], "unknown scaling 'lorra'"),
        (["sweep-from", "rslora.yaml", "--ranks", "4,x"], "adapter.rank=x is no rank"),
        (["import-config", "axolotl.yml", "--sweep", "pairs.yml"], "'_' pairs values"),
        (["import-config", "axolotl.yml", "--sweep", "inert.yml"], "sweeping output_dir changes nothing"),
        (["import-config", "axolotl.yml", "--sweep", "two.yml"], "changes train.batch_size and train.steps"),
        (["import-config", "axolotl.yml", "--sweep", "flat.yml"], "lora_r=8 is no list of values"),
    ],
)  # fmt: skip
def test_mistakes_of_a_line_write_nothing(study_cli: Cli, arguments: list[str], says: str) -> None:
    Path("broken.json").write_text('{"a": ')
    Path("pairs.yml").write_text(yaml.safe_dump({"_": [{"lora_r": 8, "lora_alpha": 16}]}))
    Path("inert.yml").write_text(yaml.safe_dump({"output_dir": ["a", "b"]}))
    Path("two.yml").write_text(yaml.safe_dump({"micro_batch_size": [1, 2]}))
    Path("flat.yml").write_text(yaml.safe_dump({"lora_r": 8}))
    before = files()
    ran = study_cli(*arguments)
    assert ran.code == 2
    assert len(ran.err.strip().splitlines()) == 1, ran.err
    assert says in ran.err
    assert files() == before


def test_a_file_that_is_there_is_kept_unless_forced(study_cli: Cli) -> None:
    study_cli("import-config", "rslora.yaml")
    mine = Path("conf/experiment/rslora.yaml")
    mine.write_text("# mine\n")
    assert (
        "is there already: give another --name, or --force"
        in study_cli("import-config", "rslora.yaml").err
    )
    assert mine.read_text() == "# mine\n"
    assert study_cli("import-config", "rslora.yaml", "--force").code == 0
    assert "lora" in mine.read_text()


def test_in_the_toolkits_own_folder_no_config_dir_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import shutil

    from study.integrations.configs import experiment

    shutil.copytree(CONF, tmp_path / "own")
    monkeypatch.setattr(experiment, "CONF", tmp_path / "own")
    assert (
        write(read_file(Path("rslora.yaml")), "mine", tmp_path / "own").command
        == "study train experiment=mine"
    )
