"""Wrong configurations and options get one line. No model is loaded and no file is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
Edit = Callable[..., None]


A, L, T, U, F = "axolotl.yml", "llama_factory.yaml", "trl.yaml", "unsloth.yaml", "torchtune.yaml"
FILES: list[tuple[str, dict[str, Any], str]] = [
    ("finlora.yaml", {"model_name": None}, "model_name is missing: give one with --base"),
    ("finlora.yaml", {"dataset": None}, "dataset is missing: add a value"),
    ("finlora.yaml", {"load_in_4bit": True}, "contradict each other: keep one"),
    (A, {"adapter": "qlora"}, "adapter: qlora and no load_in_4bit contradict"),
    (A, {"adapter": "ia3"}, "adapter=ia3: study train trains LoRA: set adapter: lora or qlora"),
    (A, {"adapter": None}, "adapter is missing: study train trains LoRA"),
    (A, {"rl": "dpo"}, "rl=dpo: study train trains on targets, not on preferences"),
    (A, {"peft_init_lora_weights": "pissa"}, "changes the base's weights"),
    (A, {"warmup_steps": 3}, "warmup_ratio and warmup_steps contradict each other"),
    (A, {"lora_target_linear": None}, "lora_target_modules is missing"),
    (A, {"lora_r": None}, "lora_r is missing: add a value"),
    (A, {"lora_r": "many"}, "lora_r='many': give a valid integer"),
    (A, {"micro_batch_size": 0}, "train.batch_size=0 should be"),
    (L, {"stage": "dpo"}, "stage=dpo: study train trains on targets, not on preferences or rew"),
    (L, {"finetuning_type": "full"}, "finetuning_type=full: it is not LoRA"),
    (L, {"dataset": None}, "dataset is missing, so it trains nothing"),
    (T, {"use_peft": None}, "use_peft is missing: without it all weights are trained"),
    (T, {"beta": 0.01}, "beta=0.01: study train trains on targets"),
    (U, {"model": None}, "model is missing: give one with --base"),
    (U, {"training__training_type": "full"}, "training.training_type=full: it is not LoRA"),
    (F, {"loss___component_": "torchtune.rlhf.loss.DPOLoss"}, "loss=torchtune.rlhf.loss.DPOLoss: "),
    ("adapter_config.json", {"base_model_name_or_path": None}, "give one with --base"),
    ("adapter_config.json", {"use_dora": True}, "use_dora=True is not plain LoRA"),
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


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("import-config finetune_configs.json", "has 2 entries: choose one with --entry, from"),
        ("import-config finetune_configs.json --entry x", "'x': choose from formula_llama"),
        ("import-config finlora.yaml --entry x", "has no entry 'x': leave out --entry"),
        ("import-config finlora.yaml --name quick", "experiment=quick is a name of the toolkit"),
        ("import-config finlora.yaml --to train.jsonl", "cannot write"),
        ("sweep-from finlora.yaml --rules lorra", "unknown adapter.scaling 'lorra'"),
    ],
)
def test_in_a_command(refused: Cli, line: str, says: str) -> None:
    assert says in refused(*line.split())
