"""Wrong configurations and options get one line. No model is loaded and no file is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from study.sweeps import run as sweep

Cli = Callable[..., Any]
Edit = Callable[..., None]


@pytest.fixture
def refused(study_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a command that must fail without writing files; returns its one line."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sweep, "load_base", lambda *_: pytest.fail("a model was loaded"))
        before = set(Path().rglob("*"))
        ran = study_cli(*arguments)
        assert ran.code == 2
        assert set(Path().rglob("*")) == before
        (line,) = ran.err.strip().splitlines()
        return line

    return run


FINLORA: list[tuple[dict[str, Any], str]] = [
    ({"lora_rank": None}, "lora_rank is missing"),
    ({"model_name": None, "dataset": None}, "model_name, dataset are missing"),
    ({"lora_rank": "many"}, "lora_rank='many' is not a number"),
    ({"use_rsLoRA": "maybe"}, "use_rsLoRA='maybe' is neither true nor false"),
    ({"quant_bits": 3}, "quant_bits=3 is neither 8 nor 4"),
    ({"load_in_4bit": True}, "quant_bits: 8 and load_in_4bit: true contradict each other"),
]
AXOLOTL: list[tuple[dict[str, Any], str]] = [
    (
        {"load_in_8bit": True, "adapter": "lora"},
        "load_in_8bit: true and load_in_4bit: true contradict each other",
    ),
    (
        {"load_in_8bit": True, "load_in_4bit": False},
        "adapter: qlora and load_in_8bit contradict each other",
    ),
    ({"adapter": "ia3"}, "'ia3': choose from lora, qlora"),
    ({"adapter": None, "load_in_4bit": None}, "adapter is missing"),
    ({"rl": "dpo"}, "rl trains on preferences"),
    ({"peft": {"loftq_config": {"loftq_bits": 4}}}, "peft.loftq_config changes the base's weights"),
    ({"warmup_steps": 3}, "warmup_steps and warmup_ratio contradict each other"),
    ({"lora_target_linear": None}, "lora_target_modules is missing"),
    ({"datasets": "alpaca"}, "is not a list of datasets"),
    ({"micro_batch_size": 0}, "micro_batch_size=0 is too small: give at least 1"),
    ({"num_epochs": 0}, "num_epochs=0.0 is not positive"),
    ({"lora_dropout": 1.5}, "adapter.dropout=1.5"),
]


@pytest.mark.parametrize(("keys", "says"), FINLORA, ids=[says for _, says in FINLORA])
def test_in_finloras_yaml(refused: Cli, edit: Edit, keys: dict[str, Any], says: str) -> None:
    edit("rslora.yaml", **keys)
    assert says in refused("import-config", "rslora.yaml")


@pytest.mark.parametrize(("keys", "says"), AXOLOTL, ids=[says for _, says in AXOLOTL])
def test_in_axolotls_yaml(refused: Cli, edit: Edit, keys: dict[str, Any], says: str) -> None:
    edit("axolotl.yml", **keys)
    assert says in refused("import-config", "axolotl.yml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1, 2", "is not valid YAML"),
        ("- 1\n- 2\n", "holds no keys"),
        ("color: red\n", "is none of the known configurations"),
        ('{"peft_type": "IA3"}', "peft_type='IA3' is not LoRA"),
    ],
)
def test_in_the_form_of_a_file(refused: Cli, text: str, says: str) -> None:
    Path("bad.yaml").write_text(text)
    assert says in refused("import-config", "bad.yaml")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("import-config finetune_configs.json", "has 2 entries: choose one with --entry, from"),
        ("import-config finetune_configs.json --entry x", "'x': choose from formula_8bits_r8"),
        ("import-config rslora.yaml --entry x", "has no entry 'x': leave out --entry"),
        ("import-config broken.json", "broken.json is not valid JSON"),
        ("import-config rslora.yaml --name quick", "experiment=quick is one of the toolkit's own"),
        ("import-config rslora.yaml --to train.jsonl", "cannot write"),
        ("sweep-from rslora.yaml --rules lorra", "unknown adapter.scaling 'lorra'"),
        ("import-config axolotl.yml --sweep pairs.yml", "'_' pairs values"),
        ("import-config axolotl.yml --sweep inert.yml", "output_dir changes nothing"),
        ("import-config axolotl.yml --sweep two.yml", "changes train.epochs and train.steps"),
        ("import-config axolotl.yml --sweep flat.yml", "lora_r=8 is not a list of values"),
    ],
)
def test_in_a_command(refused: Cli, line: str, says: str) -> None:
    Path("broken.json").write_text('{"a": ')
    sweeps = {
        "pairs": {"_": [{"lora_r": 8, "lora_alpha": 16}]},
        "inert": {"output_dir": ["a", "b"]},
        "two": {"max_steps": [1, 2]},
        "flat": {"lora_r": 8},
    }
    for name, keys in sweeps.items():
        Path(f"{name}.yml").write_text(yaml.safe_dump(keys))
    assert says in refused(*line.split())
