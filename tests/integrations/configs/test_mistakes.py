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


FILES: list[tuple[str, dict[str, Any], str]] = [
    ("rslora.yaml", {"model_name": None, "dataset": None}, "model_name, dataset are missing"),
    ("rslora.yaml", {"load_in_4bit": True}, "contradict each other: keep one"),
    ("axolotl.yml", {"load_in_4bit": False}, "adapter: qlora and no load_in_4bit contradict"),
    ("axolotl.yml", {"adapter": "ia3"}, "adapter='ia3': give 'lora' or 'qlora'"),
    ("axolotl.yml", {"adapter": None}, "adapter is missing, which trains all weights"),
    ("axolotl.yml", {"rl": "dpo"}, "rl trains on preferences"),
    ("axolotl.yml", {"peft_init_lora_weights": "pissa"}, "changes the base's weights"),
    ("axolotl.yml", {"warmup_steps": 3}, "warmup_steps and warmup_ratio contradict each other"),
    ("axolotl.yml", {"lora_target_linear": None}, "lora_target_modules is missing"),
    ("axolotl.yml", {"micro_batch_size": 0}, "train.batch_size=0 should be"),
    ("factory.yaml", {"stage": "dpo"}, "stage: dpo trains on no targets: give stage: sft"),
    ("factory.yaml", {"finetuning_type": "full"}, "finetuning_type=full is not LoRA"),
    ("factory.yaml", {"dataset": None}, "dataset is missing, so it trains nothing"),
    ("factory.yaml", {"dataset": "nothing"}, "'nothing': choose from chats, roles, more"),
    ("trl.yaml", {"use_peft": None}, "use_peft is not true, which trains all weights"),
    ("trl.yaml", {"beta": 0.01}, "beta is for training on preferences or rewards"),
    ("adapter.yaml", {"base_model_name_or_path": None}, "names no base: give one with --base"),
]


@pytest.mark.parametrize(("name", "keys", "says"), FILES, ids=[says for *_, says in FILES])
def test_in_a_file(refused: Cli, edit: Edit, name: str, keys: dict[str, Any], says: str) -> None:
    edit(name, **keys)
    assert says in refused("import-config", name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1, 2", "is not valid YAML"),
        ("- 1\n- 2\n", "holds no keys"),
        ("color: red\n", "is none of the known configurations"),
    ],
)
def test_in_the_form_of_a_file(refused: Cli, text: str, says: str) -> None:
    Path("bad.yaml").write_text(text)
    assert says in refused("import-config", "bad.yaml")


SWEEPS = {
    "pairs": {"_": [{"lora_r": 8, "lora_alpha": 16}]},
    "inert": {"output_dir": ["a", "b"]},
    "two": {"max_steps": [1, 2]},
    "flat": {"lora_r": 8},
}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("import-config finetune_configs.json", "has 2 entries: choose one with --entry, from"),
        ("import-config finetune_configs.json --entry x", "'x': choose from formula_8bits_r8"),
        ("import-config rslora.yaml --entry x", "has no entry 'x': leave out --entry"),
        ("import-config rslora.yaml --name quick", "experiment=quick is a name of the toolkit"),
        ("import-config rslora.yaml --to train.jsonl", "cannot write"),
        ("sweep-from rslora.yaml --rules lorra", "unknown adapter.scaling 'lorra'"),
        ("import-config axolotl.yml --sweep pairs.yml", "'_' pairs values"),
        ("import-config axolotl.yml --sweep inert.yml", "output_dir changes nothing"),
        ("import-config axolotl.yml --sweep two.yml", "train.epochs and train.steps together"),
        ("import-config axolotl.yml --sweep flat.yml", "lora_r=8 is not a list of values"),
    ],
)
def test_in_a_command(refused: Cli, line: str, says: str) -> None:
    for name, keys in SWEEPS.items():
        Path(f"{name}.yml").write_text(yaml.safe_dump(keys))
    assert says in refused(*line.split())
