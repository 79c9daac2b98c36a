"""A broken adapter in PEFT's format gives one clear line (whole ones: test_experts.py)."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from study.adapters import AdapterSpec, adapted
from study.errors import StudyError
from study.training.peft_format import CONFIG, WEIGHTS, read_adapter, write_adapter


def set_config(folder, **changes):
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def set_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


Q = "base_model.model.model.layers.0.self_attn.q_proj"
LORA_B = torch.zeros(64, 5)
BROKEN = {
    f"{CONFIG} does not exist": shutil.rmtree,
    f"{WEIGHTS} does not exist": lambda f: (f / WEIGHTS).unlink(),
    "a pickle, which is not safe to open": lambda f: (f / WEIGHTS).rename(f / "adapter_model.bin"),
    "is not valid JSON": lambda f: (f / CONFIG).write_text("{"),
    "has r: Field required": lambda f: set_config(f, r=...),
    "has peft_type='VERA': Input should be 'LORA'": lambda f: set_config(f, peft_type="VERA"),
    "use_dora=True": lambda f: set_config(f, use_dora=True),
    "is damaged": lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]),
    "has no tensors": lambda f: set_tensors(f, dict.clear),
    r"lora_A \[3, 128\] and lora_B \[64, 3\], but .* rank 8": lambda f: set_config(f, r=8),
    r"lora_A \[3, 64\] and lora_B \[64, 5\]": lambda f: set_tensors(
        f, lambda t: t.update({f"{Q}.lora_B.weight": LORA_B})
    ),
    "no lora_B for .*q_proj": lambda f: set_tensors(f, lambda t: t.pop(f"{Q}.lora_B.weight")),
    "not A or B of a linear layer": lambda f: set_tensors(
        f, lambda t: t.update({"base_model.model.x.lora_embedding_A": LORA_B})
    ),
    "non-finite": lambda f: set_tensors(f, lambda t: t[f"{Q}.lora_A.weight"].fill_(torch.nan)),
}


@pytest.mark.parametrize("says", BROKEN)
def test_a_broken_adapter_is_one_clear_line(tiny_base, tmp_path, says):
    with adapted(tiny_base.model, tiny_base.card.linears, [AdapterSpec(3, 2.0)]) as banks:
        pairs = {bank.layer: bank.pairs[0] for bank in banks}
    folder, modules = tmp_path / "adapter", dict(tiny_base.model.named_modules())
    write_adapter(folder, pairs, alpha=6, exponent=1, modules=modules)
    read_adapter(folder)
    BROKEN[says](folder)
    with pytest.raises(StudyError, match=says):
        read_adapter(folder)
