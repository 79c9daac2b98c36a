"""PEFT's format: PEFT loads our adapters with equal logits; a broken one gives one clear line."""

import copy
import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from study.adapters import AdapterSpec, LoraPair, adapted
from study.errors import StudyError
from study.training.peft_format import CONFIG, WEIGHTS, read_adapter, write_adapter

IDS = torch.arange(24).view(2, 12)


def trained(model, layers, **spec):
    """Adapters with a B that is not 0, and the model's logits with them."""
    with adapted(model, layers, [AdapterSpec(**spec)]) as banks, torch.no_grad():
        for number, bank in enumerate(banks):
            bank.pairs[0].B_OR.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
        logits = model(IDS).logits
        pairs = {bank.layer: bank.pairs[0] for bank in banks}
    return {n: LoraPair(A.clone(), B.clone(), gamma) for n, (A, B, gamma) in pairs.items()}, logits


def written(folder, model, pairs, alpha, **about):
    write_adapter(folder, pairs, alpha=alpha, modules=dict(model.named_modules()), **about)
    return folder


def config_of(folder):
    return dict(json.loads((folder / CONFIG).read_text()))


def test_conv1d(tmp_path):
    shape = {"vocab_size": 64, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    gpt2 = GPT2LMHeadModel(GPT2Config(**shape)).eval()
    layers = [n for n, m in gpt2.named_modules() if type(m).__name__ == "Conv1D"]
    pairs, expected = trained(gpt2, layers, rank=4, gamma=2.0)
    folder = written(tmp_path / "adapter", gpt2, pairs, 8, exponent=1.0)
    assert config_of(folder)["fan_in_fan_out"] is True
    with torch.no_grad():
        found = PeftModel.from_pretrained(copy.deepcopy(gpt2), folder).eval()(IDS).logits
    # Our banks and PEFT multiply in different orders.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


# Broken adapters.


@pytest.fixture
def good(tiny_base, tmp_path):
    pairs, _ = trained(tiny_base.model, list(tiny_base.card.linears), rank=3, gamma=2.0)
    return written(tmp_path / "good", tiny_base.model, pairs, 6, exponent=1)


def set_config(folder, **changes):
    config = config_of(folder) | changes
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
def test_a_broken_adapter_is_one_clear_line(good, says):
    BROKEN[says](good)
    with pytest.raises(StudyError, match=says):
        read_adapter(good)
