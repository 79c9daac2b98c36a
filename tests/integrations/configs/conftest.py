"""Configurations of other tools as users have them, beside the data that they name."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import study
from study.store import StudyTables

# The YAML of FinLoRA's documentation of rsLoRA, key by key.
FINLORA_YAML = """\
use_rsLoRA: true
lora_rank: 64        # a comment
lora_alpha: 16
quant_bits: 8

dataset: "xbrl_extract_train.jsonl"
model_name: "meta-llama/Llama-3.1-8B-Instruct"
"""
FINLORA_JSON = """\
formula_8bits_r8_rslora:
  base_model: meta-llama/Llama-3.1-8B-Instruct
  dataset_path: train.jsonl
  lora_r: 8
  quant_bits: 8
  learning_rate: 0.0001
  num_epochs: 4
  batch_size: 8
  gradient_accumulation_steps: 2
  peft_use_rslora: true
formula_4bits_r4_dora:
  base_model: meta-llama/Llama-3.1-8B-Instruct
  dataset_path: elsewhere/train.jsonl
  lora_r: 4
  quant_bits: 4
  lora_alpha: 32
  peft_use_dora: true
"""
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
LLAMA_FACTORY = """\
model_name_or_path: org/model-4b
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: q_proj, v_proj
use_rslora: true
dataset: chats, more
dataset_dir: data
template: qwen3_nothink
cutoff_len: 64
max_samples: 1000
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
quantization_bit: 4
output_dir: saves
plot_loss: true
"""
# The keys of the alignment-handbook's recipe for Zephyr.
TRL = """\
model_name_or_path: org/model-7b
load_in_4bit: true
use_peft: true
lora_r: 16
lora_alpha: 8
lora_target_modules: [q_proj, o_proj]
chat_template: "{% for message in messages %}{% endfor %}"
dataset_mixture:
  datasets:
    - {id: org/chats, split: train_sft, columns: [messages]}
    - {id: org/chats, split: test_sft, columns: [messages]}
bf16: true
learning_rate: 2.0e-4
lr_scheduler_type: cosine
max_length: 2048
packing: true
per_device_train_batch_size: 4
gradient_accumulation_steps: 2
num_train_epochs: 1
warmup_ratio: 0.1
"""
PEFT = """\
peft_type: LORA
base_model_name_or_path: org/model
r: 8
lora_alpha: 16
target_modules: [q_proj]
"""
DATASET_INFO = """\
chats:
  hf_hub_url: org/chats
  formatting: sharegpt
  columns: {messages: messages}
  tags: {role_tag: role, content_tag: content, user_tag: user, assistant_tag: assistant}
roles: {hf_hub_url: org/chats, formatting: sharegpt, tags: {observation_tag: result}}
more: {hf_hub_url: org/more}
rows: {file_name: rows.json}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jsonl: Path) -> None:
    """The working directory: a configuration in each form, and the data."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for name, text in {
        "train.jsonl": jsonl.read_text(),
        "rslora.yaml": FINLORA_YAML,
        "finetune_configs.json": json.dumps(yaml.safe_load(FINLORA_JSON)),
        "axolotl.yml": AXOLOTL,
        "factory.yaml": LLAMA_FACTORY,
        "trl.yaml": TRL,
        "adapter.yaml": PEFT,
        "data/dataset_info.json": json.dumps(yaml.safe_load(DATASET_INFO)),
        "data/rows.json": "[]",
    }.items():
        Path(name).write_text(text)


@pytest.fixture
def edit() -> Callable[..., None]:
    """Replace keys of a YAML file: ``edit("axolotl.yml", lora_r=8)``; None removes a key."""

    def replace(name: str, **keys: Any) -> None:
        values = {**yaml.safe_load(Path(name).read_text()), **keys}
        kept = {key: value for key, value in values.items() if value is not None}
        Path(name).write_text(yaml.safe_dump(kept))

    return replace


@pytest.fixture
def trained(study_cli: Callable[..., Any]) -> Callable[..., StudyTables]:
    """Run two steps of a printed command on the tiny base and read the study's tables."""

    def run(line: str, *more: str) -> StudyTables:
        words = shlex.split(line)
        small = ["model=tiny", "train.steps=2", "train.epochs=null", "data.sequence_length=48"]
        ran = study_cli(*words[1:], *small, *more)
        assert ran.code == 0, ran.err
        (name,) = (word.partition("=")[2] for word in words if word.startswith("experiment="))
        return study.load(f"results/{name}")

    return run
