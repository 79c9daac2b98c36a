"""LoRA in bf16 as usual and rounded once, beside float32: PEFT and TRL's trainer.

    python docs/examples/bf16.py SMOLLM2_FOLDER

One batch of four sentences, all linear layers, alpha 16, AdamW without weight decay. Prints by
how much the loss has fallen after 1, 10 and 40 updates in float32, and how far bf16 is from that,
as usual and rounded once, in nats. See docs/bf16.md.
"""

import sys
import tempfile
from itertools import product
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import SFTConfig, SFTTrainer

from study.integrations.peft import round_once

BASE = sys.argv[1]
TEXTS = (
    "The function returns the number of bytes that were written to the file, or raises an error.",
    "A class that inherits from object and defines its own methods for comparison.",
    "When the iterator is exhausted, the loop ends and the else clause is executed.",
    "Modules are imported once per process; later imports return the same object.",
)
TOKENIZER = AutoTokenizer.from_pretrained(BASE)
FORMS = ("float32", "bf16", "once")
SHOWN = [1, 10, 40]
"""The updates after which the fall of the loss is printed."""


def adapted(dtype: torch.dtype, form: str, rank: int) -> Any:
    """A PEFT model of the base in ``dtype``."""
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=dtype)
    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear")
    model = get_peft_model(base, config)
    return round_once(model) if form == "once" else model


def with_peft(form: str, rank: int, lr: float) -> list[float]:
    """The losses of PEFT on a base in bf16; its adapters stay float32."""
    model = adapted(torch.float32 if form == "float32" else torch.bfloat16, form, rank)
    batch = TOKENIZER(list(TEXTS), return_tensors="pt", padding=True)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    losses = []
    for _ in range(SHOWN[-1] + 1):
        loss = model(**batch, labels=labels).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def with_trl(form: str, rank: int, lr: float) -> list[float]:
    """SFTTrainer with autocast to bf16 over a base in float32."""
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            folder,
            max_steps=SHOWN[-1] + 1,
            per_device_train_batch_size=len(TEXTS),
            learning_rate=lr,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            bf16=form != "float32",
            gradient_checkpointing=False,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        rows = Dataset.from_list([{"input_ids": TOKENIZER(text).input_ids} for text in TEXTS])
        model = adapted(torch.float32, form, rank)
        trainer = SFTTrainer(model, args, train_dataset=rows, processing_class=TOKENIZER)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def main(rank: int, lr: float) -> None:
    """Print a row for each loop."""
    for name, train in (("PEFT", with_peft), ("TRL", with_trl)):
        falls = {}
        for form in FORMS:
            losses = train(form, rank, lr)
            falls[form] = [losses[0] - losses[step] for step in SHOWN]
        bf16, once = (np.subtract(falls[form], falls["float32"]) for form in FORMS[1:])
        cells = (", ".join(f"{n:.3f}" for n in each) for each in (falls["float32"], bf16, once))
        print(f"| {name} | {rank} | {lr:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    print("| loop | rank | lr | fall in float32 | bf16 is off by | rounded once |")
    print("|---|---|---|---|---|---|")
    for rank, lr in product((4, 256), (2e-5, 1e-4)):
        main(rank, lr)
