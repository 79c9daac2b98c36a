"""The plugin in a training of Axolotl, from its command. Skipped where Axolotl is not installed.

Axolotl pins its own torch, transformers and antlr, so it has an environment of its own. There::

    python -m pytest --noconftest tests/integrations/test_axolotl_itself.py
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("axolotl")

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import study

KERNELS_OFF = {"lora_mlp_kernel": False, "lora_qkv_kernel": False, "lora_o_kernel": False}
CONFIG = """
base_model: ./base
datasets: [{path: data.jsonl, ds_type: json, type: alpaca}]
dataset_prepared_path: ./prepared
sequence_len: 512
adapter: lora
lora_r: 8
lora_alpha: 16
lora_target_linear: true
micro_batch_size: 2
gradient_accumulation_steps: 2
max_steps: 3
num_epochs: 1
optimizer: adamw_torch
learning_rate: 0.001
lr_scheduler: constant_with_warmup
warmup_steps: 2
bf16: false
tf32: false
sdp_attention: true
output_dir: ./out
save_strategy: "no"
plugins: [study.integrations.axolotl.NormProbePlugin]
norm_probe: {results: results/mine, steps: [0, 1]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama with a tokenizer of bytes, and forty instructions."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: n for n, word in enumerate(["<unk>", "<s>", "</s>", *characters])}
    bytes_of = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    bytes_of.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=bytes_of, **special).save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(vocabulary), num_hidden_layers=2, eos_token_id=2, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    rows = [{"instruction": f"Say {n}", "input": "", "output": f"{n} {n}"} for n in range(40)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def axolotl(folder: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    (folder / "config.yml").write_text(yaml.safe_dump(yaml.safe_load(CONFIG) | settings))
    command = [sys.executable, "-m", "axolotl.cli.main", "train", "config.yml"]
    return subprocess.run(
        [*command, "--launcher", "python"], cwd=folder, capture_output=True, text=True
    )


def test_fused_kernels_are_refused_before_anything_is_loaded(folder: Path) -> None:
    """Axolotl turns them on if the YAML does not set them."""
    ran = axolotl(folder)
    assert ran.returncode != 0
    assert (
        "lora_mlp_kernel, lora_qkv_kernel, lora_o_kernel bypass the hooks of the LoRA layers: set "
        "lora_mlp_kernel: false, lora_qkv_kernel: false, lora_o_kernel: false"
    ) in ran.stderr
    assert not (folder / "prepared").exists()


def test_a_training_is_a_cell(folder: Path) -> None:
    """Two runs of one seed have one init. A run without a seed says that its init is unknown."""
    norms = []
    for name in ("first", "second"):
        options = {"results": f"results/{name}", "steps": [0, 1]}
        ran = axolotl(folder, **KERNELS_OFF, seed=7, norm_probe=options)
        assert ran.returncode == 0, ran.stderr[-2000:]
        tables = study.load(str(folder / "results" / name))
        norms.append(tables.metrics["grad_norm"].tolist())
    assert norms[0] == norms[1]
    assert tables.cells[["status", "rank", "seed"]].values.tolist() == [["complete", 8.0, 7]]
    assert tables.metrics["lr"].tolist() == [0.0, 5e-4, 1e-3]

    ran = axolotl(folder, **KERNELS_OFF)
    assert ran.returncode == 0, ran.stderr[-2000:]
    [record] = study.store.load_records(folder / "results" / "mine")
    assert "the draw of the init is unknown" in record["training_note"]
    assert "learning rate of step 0 is 0 (warm-up)" in record["training_note"]
