"""What is read of the files of Axolotl, FinLoRA, LLaMA-Factory and TRL, and what is noted."""

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
SHARED = Path(__file__).parents[4] / "shared/data/finlora/rslora_config.yaml"


def read_exactly(name: str, entry: str | None, expected: str) -> Any:
    """The experiment of a file, all of whose settings are those of ``expected``, a YAML."""
    experiment = read_file(Path(name), entry)
    values: dict[str, Any] = {}
    for key, value in experiment.values.items():
        group, dot, rest = key.partition(".")
        (values.setdefault(group, {}) if dot else values)[rest or group] = value
    if Path(values["data"]["path"]).is_file():
        values["data"]["path"] = Path(values["data"]["path"]).name
    assert values == yaml.safe_load(expected)
    return experiment


AXOLOTL = """
model: {path: org/model-1b, quant_bits: 4}
data:
  sequence_length: 64
  sample_packing: true
  excess_length_strategy: drop
  format: context_target
  prompt: "{context} "
  path: train.jsonl
adapter: {rank: 32, alpha: 16.0, scaling: rslora, targets: all-linear, dropout: 0.05}
optimizer: {lr: 0.0002, weight_decay: 0.01, loraplus_lr_ratio: 16.0, betas: [0.9, 0.95]}
train: {batch_size: 2, accumulation: 3, epochs: 2.0, clip: 0.5, schedule: cosine, warmup: 0.1}
precision: bf16
seed: 7
"""


def test_axolotl(study_cli: Cli, trained: Trained) -> None:
    experiment = read_exactly("axolotl.yml", None, AXOLOTL)
    assert experiment.groups == {"model": "hf", "data": "file", "optimizer": "adamw"}
    imported = study_cli("import-config", "axolotl.yml", "--name", "mine")
    cells = trained(imported.out, "precision=float32").cells
    columns = ["rank", "scaling", "lr", "schedule", "weight_decay", "seed"]
    assert cells[columns].values.tolist() == [[32.0, "rslora", 2e-4, "cosine", 0.01, 7]]


LLAMA_FACTORY = """
model: {path: org/model-4b, quant_bits: 4}
data: {sequence_length: 64, format: messages, path: org/chats, split: train, max_samples: 1000}
adapter: {rank: 8, alpha: 16.0, scaling: rslora, targets: [q_proj, v_proj], dropout: 0.0}
optimizer: {lr: 0.0001, weight_decay: 0.0}
train: {batch_size: 1, accumulation: 8, clip: 1.0, epochs: 3.0, schedule: cosine, warmup: 0.1}
precision: bf16
seed: 42
"""


def test_llama_factory() -> None:
    experiment = read_exactly("factory.yaml", None, LLAMA_FACTORY)
    assert experiment.differs == [
        "dataset: org/more (its format, split or subset differs from the first one, which is "
        "trained on)"
    ]
    assert (
        "template: qwen3_nothink (the tokenizer's own chat template is used)" in experiment.details
    )
    assert experiment.defaults == [
        "LLaMA-Factory's defaults: max_grad_norm 1.0, optim adamw_torch_fused, seed 42, "
        "lora_alpha 16.0"
    ]
    assert experiment.ignored == ["do_train", "output_dir", "plot_loss"]


ENTRY = """
model: {path: meta-llama/Llama-3.1-8B-Instruct, quant_bits: 8}
data:
  sequence_length: 4096
  excess_length_strategy: drop
  format: context_target
  prompt: "[INST] {context} [/INST]"
  path: train.jsonl
  heldout: 1
adapter: {rank: 8, alpha: 16.0, scaling: rslora, targets: [q_proj, v_proj, k_proj], dropout: 0.05}
optimizer: {lr: 0.0001, weight_decay: 0.0}
train: {batch_size: 8, accumulation: 2, epochs: 4.0, clip: 1.0, schedule: cosine, warmup: 10}
precision: bf16
"""


def test_an_entry_of_finloras_configurations(study_cli: Cli) -> None:
    experiment = read_exactly("finetune_configs.json", "formula_8bits_r8_rslora", ENTRY)
    said = "\n".join(experiment.defaults)
    for note in ("FinLoRA's finetune.py sets ", "lora_dropout 0.05", "max_grad_norm 1.0"):
        assert note in said
    imported = study_cli(
        "import-config", "finetune_configs.json", "--entry", "formula_4bits_r4_dora"
    )
    text = Path("conf/experiment/formula_4bits_r4_dora.yaml").read_text()
    for note in (
        "peft_use_dora: true (plain LoRA is trained)",
        "datasets[0].path: elsewhere/train.jsonl is no file here: give data.path=... when ",
        "val_set_size: 0.02 (a share of rows that are not here",
        "deepspeed: deepspeed_configs/zero1.json (one device: with n GPUs, a step ",
        "optimizer: paged_adamw_8bit (adamw, with states in 32 bits)",
    ):
        assert f"\n  {note}" in imported.err
        assert f"\n#   {note}" in text
    ran = study_cli(*shlex.split(imported.out)[1:], "model=tiny", "data.sequence_length=48")
    assert ran.code == 2
    assert "data.path is not set: give data.path=" in ran.err


def test_finloras_yaml_trains_on_tiny(study_cli: Cli, trained: Trained) -> None:
    file = SHARED if SHARED.exists() else Path("rslora.yaml")
    imported = study_cli("import-config", str(file), "--name", "rslora")
    assert imported.out == "study train --config-dir=conf experiment=rslora\n"
    assert "xbrl_extract_train.jsonl not found: data=xbrl_extract is used instead" in imported.err
    model = yaml.safe_load(Path("conf/model/rslora.yaml").read_text())
    assert (model["path"], model["quant_bits"]) == ("meta-llama/Llama-3.1-8B-Instruct", 8)
    cells = trained(imported.out).cells
    columns = ["model", "data", "rank", "alpha", "scaling", "status"]
    expected = ["tiny", "xbrl_extract", 64.0, 16.0, "rslora", "complete"]
    assert cells[columns].values.tolist() == [expected]


def typed(kind: Any) -> dict[str, Any]:
    return {"datasets": [{"path": "train.jsonl", "type": kind}]}


def chat(**keys: Any) -> dict[str, Any]:
    return {"datasets": [{"path": "org/chats", "type": "chat_template", **keys}]}


ALPACA, CHAT, NOTHING = ({"data.format": name} for name in ("alpaca", "messages", None))
FROM_VALUE = {"role": "from", "content": "value"}
NO_RATIO: dict[str, Any] = {"warmup_ratio": None}
AXOLOTL_CASES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (typed("alpaca"), ALPACA, ""),
    (typed("alpaca:chat"), ALPACA, "prompts are those of alpaca"),
    (typed("completion"), {"data.format": "completion"}, "longer texts are cut"),
    (
        typed({"field_instruction": "instruction", "field_output": "output", "format": "Q: {x}"}),
        ALPACA,
        'datasets[0].type: {"format": "Q: {x}", ',
    ),
    (typed("input_output"), NOTHING, "datasets[0]: train.jsonl of type input_output (convert"),
    (chat() | {"chat_template": "chatml"}, {"data.chat_template": "chatml"}, ""),
    (chat(type="sharegpt", conversation="chatml"), {"data.chat_template": "chatml"}, ""),
    (chat() | {"chat_template": "llama3"}, CHAT, "chat_template: llama3, of Axolotl"),
    (
        {"datasets": [{"path": name, "type": "alpaca"} for name in ("train.jsonl", "org/b")]},
        {"data.path": ["train.jsonl", "org/b"], "data.format": "alpaca"},
        "",
    ),
    (chat() | {"chat_template_jinja": "mine.jinja"}, {"data.chat_template": "mine.jinja"}, ""),
    (chat() | {"chat_template_jinja": "{{ x }}"}, CHAT, "write the template to a file"),
    (
        chat(
            field_messages="conversations",
            message_property_mappings=FROM_VALUE,
            roles={"user": ["human"], "assistant": ["gpt"]},
            roles_to_train=["assistant"],
            train_on_eos="turn",
            field_system="system",
        ),
        CHAT,
        "",
    ),
    (chat(message_property_mappings={"role": "who"}), NOTHING, '{"role": "who"}} (messages or'),
    (chat(roles_to_train=["user"]), CHAT, "datasets[0].roles_to_train"),
    (
        chat(split="train[:20%]", name="english"),
        {"data.path": "org/chats", "data.split": "train[:20%]", "data.subset": "english"},
        "",
    ),
    (chat() | {"val_set_size": 0.1}, CHAT, "val_set_size: 0.1 (a share of rows that are not here"),
    (NO_RATIO | {"warmup_steps": 5}, {"train.warmup": 5}, ""),
    (NO_RATIO | {"warmup_steps": 1}, {"train.warmup": 2}, ""),  # Axolotl makes two of one
    ({"lr_scheduler": "constant"}, {"train.warmup": 0}, ""),
    ({"lr_scheduler": "polynomial"}, {"train.schedule": "constant"}, "polynomial (constant inst"),
    ({"batch_size": 12, "gradient_accumulation_steps": None}, {"train.accumulation": 6}, ""),
    ({"max_steps": 7}, {"train.steps": 7, "train.epochs": None}, ""),
    ({"plugins": ["axolotl.x.LigerPlugin", "my.Plugin"]}, {}, "plugins: my.Plugin (it is not run)"),
    ({"special_tokens": {"bos_token": "<s>"}}, {}, "the base's own tokenizer is used"),
    ({"peft_init_lora_weights": "gaussian"}, {}, "adapter.init=kaiming, PEFT's default"),
]
SILENT = """lora_target lora_rank cutoff_len per_device_train_batch_size learning_rate bf16
    gradient_accumulation_steps lr_scheduler_type num_train_epochs warmup_ratio"""
LLAMA_FACTORY_CASES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"packing": True}, {"data.sample_packing": True}, "each example is attended to alone"),
    (
        dict.fromkeys(SILENT.split()),
        {"adapter.targets": "all-linear", "adapter.rank": 8, "adapter.alpha": 16.0}
        | {"data.sequence_length": 2048, "train.batch_size": 8, "train.accumulation": 1}
        | {"train.epochs": 3.0, "train.schedule": "linear", "optimizer.lr": 5e-05}
        | {"train.warmup": None, "precision": "float32"},
        "",
    ),
]
TRL_CASES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {},
        {"adapter.rank": 16, "adapter.alpha": 8.0, "adapter.dropout": 0.05, "train.clip": 1.0}
        | {"adapter.targets": ["q_proj", "o_proj"], "data.sequence_length": 2048}
        | {"data.sample_packing": True, "optimizer.lr": 2e-4, "precision": "bf16", "seed": 42},
        "TRL's defaults: lora_dropout 0.05, max_grad_norm 1.0",
    ),
    ({"bf16": None, "fp16": True}, {"precision": "float32"}, "fp16: true"),
]
CASES = [
    *(("axolotl.yml", *case) for case in AXOLOTL_CASES),
    *(("factory.yaml", *case) for case in LLAMA_FACTORY_CASES),
    *(("trl.yaml", *case) for case in TRL_CASES),
]


@pytest.mark.parametrize(("name", "keys", "expected", "says"), CASES)
def test_other_values(
    edit: Edit, name: str, keys: dict[str, Any], expected: dict[str, Any], says: str
) -> None:
    """``says`` is noted; if it is empty, no note on the data is new."""
    Path("mine.jinja").write_text("{{ messages }}")
    edit(name, **keys)
    experiment = read_file(Path(name))
    values = experiment.values

    def name_of(path: Any) -> Any:
        if isinstance(path, list):
            return [name_of(each) for each in path]
        return Path(path).name if Path(path).is_file() else path

    for key in {"data.path", "data.chat_template"} & values.keys():
        values[key] = name_of(values[key])
    found = {key: values.get(key) for key in expected}
    assert list(map(repr, found.values())) == list(map(repr, expected.values()))
    assert says in "\n".join(experiment.lines())
    if "datasets" in keys and not says:
        assert not [note for note in experiment.differs if note.startswith("datasets[0]")]


def test_defaults_of_axolotl_are_used_and_listed(edit: Edit) -> None:
    silent = ("micro_batch_size", "lr_scheduler", "warmup_ratio", "max_grad_norm", "bf16", "seed")
    edit("axolotl.yml", **dict.fromkeys(silent))
    experiment = read_file(Path("axolotl.yml"))
    assert (experiment.values["precision"], experiment.values["train.warmup"]) == ("bf16", 0.03)
    assert experiment.defaults == [
        "seed: Axolotl draws adapters without one (seed=0)",
        "Axolotl's defaults: micro_batch_size 1, max_grad_norm 1.0, lr_scheduler cosine, "
        "excess_length_strategy drop, warmup_ratio 0.03 (at most 100 steps), bf16 auto",
    ]
