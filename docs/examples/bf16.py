"""LoRA in bf16 as usual and rounded once, beside float32: PEFT, TRL's trainer and plain torch.

    python docs/examples/bf16.py SMOLLM2_FOLDER [RANK LR ...]

One batch of four sentences, all linear layers, alpha 16, AdamW without weight decay. Prints by
how much the loss has fallen after 1, 10 and 40 updates in float32, and how far bf16 is from that,
as usual and rounded once, in nats. See docs/bf16.md.
"""

import math
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
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


class PlainLora(nn.Module):
    """LoRA in plain torch. A and B stay float32, as in PEFT."""

    def __init__(self, base: nn.Linear, rank: int, is_once: bool) -> None:
        super().__init__()
        self.W_OD, self.gamma, self.is_once = base.weight.requires_grad_(False), 16 / rank, is_once
        self.A_RD = nn.Parameter(torch.empty(rank, base.in_features))
        self.B_OR = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.A_RD, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """``W0 x + gamma B A x``, of x of shape ``[..., D]``."""
        d = self.gamma * F.linear(F.linear(x.to(self.A_RD.dtype), self.A_RD), self.B_OR)
        if not self.is_once:
            return (F.linear(x, self.W_OD) + d).to(x.dtype)
        d_NO, x_ND = d.to(x.dtype).flatten(0, -2), x.flatten(0, -2)
        y_NO = torch.addmm(d_NO, x_ND, self.W_OD.T)
        return y_NO.view(d.shape)


def base_of(dtype: torch.dtype) -> Any:
    """The base with frozen weights, and the seed of the adapters."""
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=dtype).requires_grad_(False)
    torch.manual_seed(0)
    return model


def adapted(dtype: torch.dtype, form: str, rank: int) -> Any:
    """A PEFT model."""
    config = LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear")
    model = get_peft_model(base_of(dtype), config)
    return round_once(model) if form == "once" else model


def loop(model: Any, lr: float) -> list[float]:
    """The losses of a training loop in torch."""
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


def with_peft(form: str, rank: int, lr: float) -> list[float]:
    """PEFT on a base in bf16; its adapters stay float32."""
    return loop(adapted(torch.float32 if form == "float32" else torch.bfloat16, form, rank), lr)


def with_torch(form: str, rank: int, lr: float) -> list[float]:
    """The layers above on a base in bf16."""
    model = base_of(torch.float32 if form == "float32" else torch.bfloat16)
    for name, module in list(model.model.named_modules()):
        if isinstance(module, nn.Linear):
            model.model.set_submodule(name, PlainLora(module, rank, form == "once"))
    return loop(model, lr)


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


LOOPS: dict[str, Callable[[str, int, float], list[float]]] = {
    "PEFT": with_peft,
    "TRL": with_trl,
    "torch": with_torch,
}


def main(rank: int, lr: float) -> None:
    """Print a row for each loop."""
    for name, train in LOOPS.items():
        falls = {}
        for form in FORMS:
            losses = train(form, rank, lr)
            falls[form] = [losses[0] - losses[step] for step in SHOWN]
        exact = falls["float32"]
        off = [[n - e for n, e in zip(falls[form], exact, strict=True)] for form in FORMS[1:]]
        cells = (", ".join(f"{n:.3f}" for n in numbers) for numbers in (exact, *off))
        print(f"| {name} | {rank} | {lr:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    print("| loop | rank | lr | fall in float32 | bf16 is off by | rounded once |")
    print("|---|---|---|---|---|---|")
    asked = sys.argv[2:] or ["4", "2e-5", "4", "1e-4", "256", "2e-5", "256", "1e-4"]
    for rank, lr in zip(asked[::2], asked[1::2], strict=True):
        main(int(rank), float(lr))
