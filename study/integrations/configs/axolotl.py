"""Axolotl's YAML (axolotl-ai-cloud/axolotl, src/axolotl/utils/schemas).

A key that is missing has Axolotl's default.
"""

import math
from pathlib import Path
from typing import Any

from study.config.bounds import LARGEST
from study.data import Example, split
from study.errors import StudyError, unknown
from study.integrations.configs.experiment import Experiment
from study.integrations.configs.fields import Fields
from study.integrations.configs.parts import (
    WHY,
    list_untaken,
    put_base,
    put_data_file,
    refuse_other_base,
    scaling_rule,
    short,
    take_bits,
)
from study.vocabulary.optimizers import OPTIMIZERS

ADAPTERS = ("lora", "qlora")
USUAL_OPTIMIZER = "adamw_torch_fused"
"""Axolotl's default. It also replaces an optimizer that the toolkit does not have."""
TARGETS = "lora_target_modules"
NO_BF16 = (None, False, "false")
MOST_EPOCHS = 1_000_000
USUAL_HELDOUT = 64
"""``data.heldout`` of ``data=jsonl``."""
SCHEDULES = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
}


def read(fields: Fields, folder: Path) -> Experiment:
    """The experiment. ``folder`` holds the file.

    Raises :class:`StudyError` for a missing or wrong value, an adapter other than LoRA, bits that
    contradict each other, and training on preferences.
    """
    bits = _check_method(fields)
    fields.require("base_model", "lora_r", "lora_alpha", "datasets", "learning_rate")
    experiment = Experiment(f"Axolotl's {fields.where}")
    put_base(experiment, str(fields.take_text("base_model")), bits, folder)
    rows = _put_data(experiment, fields, folder)
    experiment.values |= {
        "adapter.rank": fields.take_whole("lora_r"),
        "adapter.alpha": fields.take_number("lora_alpha"),
        "adapter.scaling": scaling_rule(fields.take_flag("peft_use_rslora")),
        "adapter.targets": _targets(fields),
        "adapter.dropout": fields.take_number("lora_dropout", 0.0),
    }
    _put_optimizer(experiment, fields)
    _put_steps(experiment, fields, rows)
    if fields.take_one_of("bf16", (True, False, "true", "false", "auto", "full")) not in NO_BF16:
        experiment.values["precision"] = "bf16"
    if "seed" in fields:
        experiment.values["seed"] = fields.take_whole("seed")
    if init := refuse_other_base(fields, "peft_init_lora_weights"):
        experiment.left_out.append(
            f"peft_init_lora_weights: {init} (adapter.init=kaiming, PEFT's default)"
        )
    if fields.take_flag("peft_use_dora"):
        experiment.left_out.append(f"peft_use_dora: true ({WHY['peft_use_dora']})")
    if fields.assumed:
        experiment.assumed.append(f"Axolotl's defaults: {', '.join(fields.assumed)}")
    list_untaken(experiment, fields)
    return experiment


def _check_method(fields: Fields) -> int | None:
    """The bits of the base. Raises for training that is not LoRA on target tokens."""
    adapter = fields.take("adapter")
    if adapter is None:
        raise StudyError(
            f"{fields.where}: adapter is missing, which trains all weights: "
            "set adapter: lora or qlora"
        )
    if adapter not in ADAPTERS:
        raise unknown(f"adapter in {fields.where}:", adapter, ADAPTERS)
    if fields.take("rl"):
        raise StudyError(
            f"{fields.where}: rl trains on preferences, study train on targets: remove rl"
        )
    bits = take_bits(fields)
    if adapter == "qlora" and bits != 4:
        given = f"load_in_{bits}bit" if bits else "no load_in_4bit"
        raise StudyError(
            f"{fields.where}: adapter: qlora and {given} contradict each other: "
            "set load_in_4bit: true"
        )
    return bits


def _put_data(experiment: Experiment, fields: Fields, folder: Path) -> int | None:
    """Add the first dataset. Returns the number of its training rows, if the file is here."""
    experiment.values["data.sequence_length"] = fields.take_whole("sequence_len", 512)
    datasets = fields.take("datasets")
    if not isinstance(datasets, list) or not all(isinstance(entry, dict) for entry in datasets):
        raise fields.wrong(
            "datasets", short(datasets), "is not a list of datasets with a path and a type"
        )
    first = Fields(datasets[0], f"{fields.where}: datasets[0]")
    first.require("path")
    path, kind = str(first.take_text("path")), first.take("type")
    files = first.take_names("data_files") or path
    file = files if isinstance(files, str) else files[0]
    examples = None
    if _reads_context_and_target(kind):
        examples = put_data_file(experiment, "datasets[0].path", file, folder)
        if isinstance(kind, dict) and kind.get("format"):
            experiment.left_out.append(
                f"datasets[0].type.format: {short(kind['format'])} (text is context + target)"
            )
    else:
        experiment.groups["data"] = "jsonl"
        experiment.left_out.append(
            f"datasets[0]: {file} of type {short(kind)} (a row must hold context and target: "
            "convert it, then give data.path=... when you train)"
        )
    first.take("ds_type")
    list_untaken(experiment, first, "datasets[0].")
    for n, entry in enumerate(datasets[1:], start=1):
        experiment.left_out.append(
            f"datasets[{n}]: {short(entry)} (only the first file is trained on)"
        )
    heldout = _heldout(experiment, fields, examples)
    return len(split(examples, heldout)[0]) if examples else None


def _heldout(experiment: Experiment, fields: Fields, examples: list[Example] | None) -> int:
    """How many examples to hold out. Axolotl gives a number or a share of the file."""
    asked = fields.take_number("val_set_size", 0.0) or 0.0
    if not 0 <= asked <= LARGEST:
        raise fields.wrong("val_set_size", asked, "is neither a share nor a number of examples")
    if asked >= 1 or (asked and examples):
        heldout = max(1, round(asked if asked >= 1 else asked * len(examples or [])))
        experiment.values["data.heldout"] = heldout
        return heldout
    if asked:
        experiment.left_out.append(
            f"val_set_size: {asked:g} (the file was not found: data.heldout keeps its default)"
        )
    return USUAL_HELDOUT


def _reads_context_and_target(kind: Any) -> bool:
    """Whether rows of a dataset of this type have the fields context and target.

    A user-defined type may. alpaca, completion, chat_template and the others have other fields.
    """
    fields = {"field_instruction": "context", "field_output": "target"}
    return isinstance(kind, dict) and all(kind.get(key) == name for key, name in fields.items())


def _targets(fields: Fields) -> str | list[str]:
    linear, modules = fields.take_flag("lora_target_linear"), fields.take_names(TARGETS)
    if linear:
        return "all-linear"
    if not modules:
        raise StudyError(
            f"{fields.where}: lora_target_modules is missing and lora_target_linear is not true: "
            "set one of them"
        )
    return modules


def _put_optimizer(experiment: Experiment, fields: Fields) -> None:
    asked = str(fields.take("optimizer", USUAL_OPTIMIZER))
    name = _our_optimizer(asked)
    if name not in OPTIMIZERS:
        name = _our_optimizer(USUAL_OPTIMIZER)
        experiment.left_out.append(f"optimizer: {asked} ({name} instead)")
    elif "8bit" in asked or "4bit" in asked:
        experiment.left_out.append(f"optimizer: {asked} ({name}, with states in 32 bits)")
    experiment.groups["optimizer"] = name
    experiment.values["optimizer.lr"] = fields.take_number("learning_rate")
    experiment.values["optimizer.weight_decay"] = fields.take_number("weight_decay", 0.0)
    if (ratio := fields.take_number("loraplus_lr_ratio")) is not None:
        experiment.values["optimizer.loraplus_lr_ratio"] = ratio
    if {"betas", "eps"} <= set(OPTIMIZERS[name].options):
        if "adam_beta1" in fields or "adam_beta2" in fields:
            betas = [fields.take_number("adam_beta1", 0.9), fields.take_number("adam_beta2", 0.999)]
            experiment.values["optimizer.betas"] = betas
        if (eps := fields.take_number("adam_epsilon")) is not None:
            experiment.values["optimizer.eps"] = eps


def _our_optimizer(theirs: str) -> str:
    """Our name of an optimizer of transformers: ``adamw`` for ``paged_adamw_8bit``."""
    return theirs.removeprefix("paged_").split("_")[0]


def _put_steps(experiment: Experiment, fields: Fields, rows: int | None) -> None:
    """Add batch, steps, clipping and schedule. Epochs become steps if the data is here."""
    batch = fields.take_count("micro_batch_size", 1)
    total = fields.take_count("batch_size", batch) if "batch_size" in fields else batch
    accumulation = fields.take_count("gradient_accumulation_steps", max(1, total // batch))
    epochs = fields.take_number("num_epochs", 1.0) or 0.0
    if not 0 < epochs <= MOST_EPOCHS:
        raise fields.wrong(
            "num_epochs", epochs, f"is not positive and at most {MOST_EPOCHS}: give such a number"
        )
    most = fields.take_whole("max_steps") or -1  # -1: no limit, as in transformers
    steps = most if most > 0 else math.ceil((rows or 0) * epochs / (batch * accumulation))
    experiment.values |= {"train.batch_size": batch, "train.accumulation": accumulation}
    if steps:
        experiment.values["train.steps"] = steps
    else:
        experiment.left_out.append(
            f"num_epochs: {epochs:g} (the data was not found: give train.steps=...)"
        )
    experiment.values["train.clip"] = fields.take_number("max_grad_norm", 1.0) or None
    schedule = str(fields.take("lr_scheduler", "cosine"))
    if schedule in SCHEDULES:
        experiment.values["train.schedule"] = SCHEDULES[schedule]
    else:
        experiment.left_out.append(f"lr_scheduler: {schedule} (constant instead)")
    _put_warmup(experiment, fields, steps)


def _put_warmup(experiment: Experiment, fields: Fields, steps: int) -> None:
    warmup, ratio = fields.take_whole("warmup_steps"), fields.take_share("warmup_ratio")
    if warmup is None and steps:
        # Axolotl's default is 3 % of the steps, at most 100.
        warmup = min(int(0.03 * steps), 100) if ratio is None else int(ratio * steps)
        if ratio is None:
            fields.assumed.append(f"warmup_steps {warmup}")
    elif warmup is None and ratio:
        experiment.left_out.append(
            f"warmup_ratio: {ratio:g} (the number of steps is unknown: give train.warmup=...)"
        )
    if warmup:
        experiment.values["train.warmup"] = warmup
