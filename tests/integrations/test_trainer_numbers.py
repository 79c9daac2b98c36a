"""Numbers that the callback measures in a run of the Trainer, against those of our training."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import study
from study.config import CellConfig

pytest.importorskip("peft")
from study.integrations.transformers import NormProbeCallback

from .conftest import assert_same_probes

Make = Callable[..., Any]
"""Builds a cell, a PEFT model, a Trainer, or the tables of a probed run."""


def count_hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


CLIPPED = ("optimizer=sgd", "optimizer.lr=0.05", "train.accumulation=2", "train.clip=0.5")


@pytest.mark.parametrize("checkpointing", [None, False, True])
@pytest.mark.parametrize("overrides", [("optimizer=adamw", "optimizer.lr=1e-3"), CLIPPED])
def test_numbers_are_those_of_our_training(
    overrides: tuple[str, ...],
    checkpointing: bool | None,
    cell: Make,
    ours: Make,
    assert_same: Make,
    peft_model: Make,
    trainer_of: Make,
    probed: Make,
    tmp_path: Path,
) -> None:
    """Without gradient checkpointing, and with both kinds."""
    config = cell(*overrides, "adapter.rank=4", "train.eval_every=0", "probes.steps=[0,1,2]")
    options: dict[str, Any] = {"gradient_checkpointing": checkpointing is not None}
    options["gradient_checkpointing_kwargs"] = {"use_reentrant": bool(checkpointing)}
    trainer = trainer_of(peft_model(config), config, tmp_path, **options)
    assert_same(probed(trainer, tmp_path, steps=[0, 1, 2]), config, ours(config))


@pytest.mark.parametrize(
    "options",
    [{"bf16": True}, {"gradient_checkpointing": True}],
    ids=lambda given: next(iter(given)),
)
def test_the_callback_does_not_change_training(
    options: dict[str, Any],
    config: CellConfig,
    peft_model: Make,
    trainer_of: Make,
    probed: Make,
    tmp_path: Path,
) -> None:
    """Bit for bit, with dropout. Afterwards the Trainer is restored."""
    plain = trainer_of(peft_model(config, lora_dropout=0.1), config, tmp_path, **options)
    plain.train()
    watched = trainer_of(peft_model(config, lora_dropout=0.1), config, tmp_path, **options)
    probed(watched, tmp_path, steps=[0, 1])
    assert len(losses(plain)) == 2
    assert losses(watched) == losses(plain)
    for a, b in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert "training_step" not in vars(watched)
    # Checkpointing has a hook of its own, so the count is not 0.
    assert count_hooks(watched.model) == count_hooks(plain.model)


def test_a_resumed_run_keeps_its_earlier_rows(
    cell: Make,
    peft_model: Make,
    trainer_of: Make,
    probed: Make,
    tmp_path: Path,
) -> None:
    config = cell("train.steps=3")
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = probed(
        trainer_of(peft_model(config), config, tmp_path, **saving), tmp_path, steps=[0, 2]
    )
    trainer = trainer_of(peft_model(config), config, tmp_path, **saving)
    trainer.add_callback(NormProbeCallback(trainer, tmp_path / "results" / "run", steps=[0, 2]))
    trainer.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-2"))
    resumed = study.load(tmp_path / "results" / "run")
    assert resumed.metrics["step"].tolist() == [0, 1, 2]
    # The init of the run, although it starts from the checkpoint's weights.
    assert resumed.cells["init"].tolist() == ["kaiming"]
    np.testing.assert_array_equal(resumed.metrics["tokens"], whole.metrics["tokens"])
    np.testing.assert_allclose(resumed.metrics["loss"], whole.metrics["loss"], rtol=1e-6)
    assert_same_probes(resumed.probes, whole.probes, rtol=1e-4)


KILLED = """
import os, signal, sys
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from study.integrations.transformers import NormProbeCallback

class Kill(TrainerCallback):
    def on_save(self, args, state, control, **_):
        if sys.argv[1] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

torch.manual_seed(0)
sizes = dict(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1)
base = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=1, num_key_value_heads=1))
model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 32, (16, 6))]
args = TrainingArguments(
    "trainer", max_steps=5, save_steps=3, report_to="none", use_cpu=True, disable_tqdm=True
)
trainer = Trainer(model=model, args=args, train_dataset=rows, callbacks=[Kill()])
trainer.add_callback(NormProbeCallback(trainer, "results/run", steps=[0, 2, 4]))
trainer.train(resume_from_checkpoint=get_last_checkpoint("trainer"))
"""
"""A user's script. Run as ``kill``, it is killed when the Trainer has saved its checkpoint."""


def test_a_run_that_was_killed_in_on_save_keeps_all_rows(tmp_path: Path) -> None:
    for argument, returned in (("kill", -signal.SIGKILL), ("go on", 0)):
        (tmp_path / "trainer").mkdir(exist_ok=True)
        command = [sys.executable, "-c", KILLED, argument]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == returned, done.stderr
    tables = study.load(tmp_path / "results" / "run")
    assert tables.cells["status"].tolist() == ["complete"]
    assert tables.metrics["step"].tolist() == [0, 1, 2, 3, 4]
    assert sorted(set(tables.probes["step"])) == [0, 2, 4]
