"""A rank sweep with PEFT in a plain loop, recorded as a study. Runs offline in a minute on a CPU::

    python docs/examples/peft_sweep.py
    study report results/peft_sweep

To use your own: replace ``base_model`` and ``batches``.
"""

import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import study

RESULTS = sys.argv[1] if len(sys.argv) > 1 else "results/peft_sweep"


def base_model():
    """A small random Llama, the same at every call."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=128, num_hidden_layers=2, **sizes))


def batches(seed, steps=3, size=4):
    """This file's own characters as tokens: ``size`` random pieces of 64 at each step."""
    text = torch.tensor([min(ord(character), 127) for character in Path(__file__).read_text()])
    chosen = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(text) - 64, (size,), generator=chosen)
        ids = torch.stack([text[start : start + 64] for start in starts.tolist()])
        yield {"input_ids": ids, "labels": ids}


for seed in (0, 1, 2):
    for use_rslora in (False, True):
        for rank in (4, 16, 64):
            base = base_model()
            torch.manual_seed(seed)
            adapter = LoraConfig(
                r=rank, lora_alpha=16, use_rslora=use_rslora, target_modules="all-linear"
            )
            model = get_peft_model(base, adapter)
            trained = [weight for weight in model.parameters() if weight.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=1e-4)
            with study.record(RESULTS, model, optimizer, steps=[0, 1, 2]):
                for batch in batches(seed):
                    model(**batch).loss.backward()
                    torch.nn.utils.clip_grad_norm_(trained, 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
