"""Do DoRA and PiSSA keep LoRA's exponents? PEFT's own layers, recorded; a minute on a CPU::

python docs/examples/dora_pissa.py
study report results/dora_pissa
"""

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import study

RESULTS = sys.argv[1] if len(sys.argv) > 1 else "results/dora_pissa"
VARIANTS = {"lora": {}, "dora": {"use_dora": True}, "pissa": {"init_lora_weights": "pissa"}}
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}


def train(variant, rank, seed, kind, lr):
    """Two steps of rsLoRA's rule on random tokens."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_hidden_layers=2, **SIZES))
    torch.manual_seed(seed)
    options = {"use_rslora": True, "target_modules": "all-linear", **VARIANTS[variant]}
    model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=16, **options))
    optimizer = kind([w for w in model.parameters() if w.requires_grad], lr=lr)
    with study.record(RESULTS, model, optimizer, steps=[0, 1], seed=seed, variant=variant):
        for _ in range(2):
            ids = torch.randint(256, (8, 64))
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


for variant in VARIANTS:
    for rank in (4, 16, 64):
        for seed in (0, 1, 2):
            train(variant, rank, seed, torch.optim.AdamW, 1e-5)
            train(variant, rank, seed, torch.optim.SGD, 1e-3)
