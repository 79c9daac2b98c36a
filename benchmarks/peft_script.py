"""PEFT with transformers' Trainer on one cell: ``python peft_script.py options.json``.

This is how most people run it; the script knows nothing of this project. Its options are ``model``
(a folder), ``rows`` (a file of tokenised rows in training order), ``rank``, ``alpha``, ``rslora``,
``targets``, ``lr``, ``steps``, ``batch_size``, ``accumulation``, ``bf16`` and ``cpu``. The Trainer
keeps its defaults, except that it does not clip: the other ways do not clip either.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments


def finetune(
    model: Any,
    rows: Any,
    options: dict[str, Any],
    prepare: Callable[[PeftModel], None] | None = None,
) -> tuple[list[float], list[float]]:
    """Train ``model``, which is without adapters again afterwards.

    Returns the seconds of every optimizer step and the loss before it. ``prepare`` is called with
    the PEFT model before training.
    """
    clock = Clock()
    lora = LoraConfig(
        r=options["rank"],
        lora_alpha=options["alpha"],
        use_rslora=options["rslora"],
        target_modules=options["targets"],
        lora_dropout=0.0,
    )
    peft_model = get_peft_model(model, lora)
    if prepare is not None:
        prepare(peft_model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=options["steps"],
            per_device_train_batch_size=options["batch_size"],
            gradient_accumulation_steps=options["accumulation"],
            learning_rate=options["lr"],
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            bf16=options["bf16"],
            use_cpu=options["cpu"],
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
        )
        InOrder(model=peft_model, args=arguments, train_dataset=rows, callbacks=[clock]).train()
    peft_model.unload()
    return clock.seconds, clock.losses


class InOrder(Trainer):
    """A Trainer that does not shuffle."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Clock(TrainerCallback):
    """Records the seconds and the loss of every optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.began)

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    dtype = torch.bfloat16 if given["bf16"] else torch.float32
    finetune(
        AutoModelForCausalLM.from_pretrained(given["model"], dtype=dtype),
        torch.load(given["rows"]),
        given,
    )
