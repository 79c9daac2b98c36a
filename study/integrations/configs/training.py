"""Optimizer, schedule, warm-up and length, as in the arguments of transformers' Trainer.

Axolotl and LLaMA-Factory pass theirs on to it, under names of their own.
"""

from typing import Any

from study.errors import StudyError
from study.integrations.configs.experiment import Experiment
from study.integrations.configs.fields import Fields
from study.vocabulary.optimizers import OPTIMIZERS

MOST_EPOCHS = 1_000_000
USUAL_OPTIMIZER = "adamw_torch_fused"
"""The Trainer's default. AdamW also replaces an optimizer that the toolkit does not have."""
SCHEDULES = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
WITHOUT_WARMUP = "constant"
"""The Trainer's schedule that ignores warm-up."""


def put_optimizer(experiment: Experiment, fields: Fields, key: str, usual_lr: float | None) -> None:
    """Add the optimizer that ``key`` names, with its learning rate and options."""
    asked = str(fields.take(key, USUAL_OPTIMIZER))
    name = _our_optimizer(asked)
    if name not in OPTIMIZERS:
        name = _our_optimizer(USUAL_OPTIMIZER)
        experiment.notes.differs.append(f"{key}: {asked} ({name} instead)")
    elif "8bit" in asked or "4bit" in asked:
        experiment.notes.differs.append(f"{key}: {asked} ({name}, with states in 32 bits)")
    experiment.groups["optimizer"] = name
    experiment.values["optimizer.lr"] = fields.take_number("learning_rate", usual_lr)
    experiment.values["optimizer.weight_decay"] = fields.take_number("weight_decay", 0.0)
    if (ratio := fields.take_number("loraplus_lr_ratio")) is not None:
        experiment.values["optimizer.loraplus_lr_ratio"] = ratio
    adam = ("adam_beta1", "adam_beta2", "adam_epsilon")
    if not {"betas", "eps"} <= set(OPTIMIZERS[name].options):
        experiment.notes.inert += [each for each in adam if fields.take_number(each) is not None]
        return
    if "adam_beta1" in fields or "adam_beta2" in fields:
        betas = [fields.take_number("adam_beta1", 0.9), fields.take_number("adam_beta2", 0.999)]
        experiment.values["optimizer.betas"] = betas
    if (eps := fields.take_number("adam_epsilon")) is not None:
        experiment.values["optimizer.eps"] = eps


def _our_optimizer(theirs: str) -> str:
    """Our name of an optimizer of transformers: ``adamw`` for ``paged_adamw_8bit``."""
    return theirs.removeprefix("paged_").split("_")[0]


def put_length(experiment: Experiment, fields: Fields, key: str, usual: float) -> None:
    """Add ``max_steps``, or the epochs that ``key`` names if no such limit is set."""
    epochs = fields.take_number(key, usual) or 0.0
    if not 0 < epochs <= MOST_EPOCHS:
        raise fields.wrong(
            key, epochs, f"is not positive and at most {MOST_EPOCHS}: give such a number"
        )
    most = fields.take_whole("max_steps") or -1  # -1: no limit
    if most > 0:
        experiment.values["train.steps"] = most
        experiment.notes.inert.append(f"{key} (max_steps decides)")
    else:
        experiment.values["train.epochs"] = epochs


def put_schedule(experiment: Experiment, fields: Fields, key: str, usual: str) -> None:
    """Add the schedule that ``key`` names, and the warm-up."""
    theirs = str(fields.take(key, usual))
    if theirs not in SCHEDULES:
        experiment.notes.differs.append(f"{key}: {theirs} (constant instead)")
    experiment.values["train.schedule"] = SCHEDULES.get(theirs, "constant")
    given = [name for name in ("warmup_steps", "warmup_ratio") if name in fields]
    warmup = _take_warmup(fields)
    if theirs == WITHOUT_WARMUP:
        experiment.values["train.warmup"] = 0
        experiment.notes.inert += [f"{name} ({key}: constant has no warm-up)" for name in given]
    elif warmup is not None:
        experiment.values["train.warmup"] = warmup


def _take_warmup(fields: Fields) -> float | int | None:
    """Steps, or a share of them below 1. ``warmup_steps`` may hold either, as in transformers 5."""
    steps, ratio = fields.take_number("warmup_steps"), fields.take_share("warmup_ratio")
    if steps and ratio:
        raise StudyError(
            f"{fields.where}: warmup_steps and warmup_ratio contradict each other: keep one"
        )
    if ratio == 1:
        raise fields.wrong("warmup_ratio", 1, "leaves no step after the warm-up: lower it")
    given = [value for value in (steps, ratio) if value is not None]
    if not given:
        return None
    warmup = max(given)  # at most one of them is not 0
    if 0 < warmup < 1:
        return warmup
    if warmup < 0 or not warmup.is_integer():
        raise fields.wrong(
            "warmup_steps", warmup, "is neither a number of steps nor a share of them below 1"
        )
    return int(warmup)


def bf16(value: Any) -> str:
    """``bf16`` or ``float32`` for a value of the key ``bf16``."""
    return "float32" if value in (None, False, "false") else "bf16"
