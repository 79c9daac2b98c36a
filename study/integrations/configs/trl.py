"""TRL's YAML for ``trl sft --config``, also that of the alignment-handbook.

A key that is missing has TRL's default. The other keys are those of transformers' Trainer, which
LLaMA-Factory has too.
"""

from pathlib import Path
from typing import Any

from study.errors import StudyError
from study.integrations.configs.experiment import Experiment, note_rest, shown
from study.integrations.configs.fields import Fields
from study.integrations.configs.peft import USUAL_TARGETS
from study.integrations.configs.settings import (
    Rows,
    format_of,
    put_base,
    put_length,
    put_optimizer,
    put_rows,
    put_schedule,
    scaling_rule,
    take_bits,
    take_targets,
)
from study.vocabulary.sources import AUTO

OF_OTHER_TRAINERS = (
    "beta",
    "max_prompt_length",
    "reward_funcs",
    "reward_model_path",
    "num_generations",
)


def read(fields: Fields, folder: Path) -> Experiment:
    """The experiment. ``folder`` holds the file.

    Raises :class:`StudyError` for a missing or wrong value, training of all weights, and training
    on preferences or rewards.
    """
    values = fields.untaken()
    for key in OF_OTHER_TRAINERS:
        if key in values:
            raise StudyError(
                f"{fields.where}: {key} is for training on preferences or rewards, study train "
                "trains on targets: give a configuration of trl sft"
            )
    if not fields.take_flag("use_peft"):
        raise StudyError(
            f"{fields.where}: use_peft is not true, which trains all weights: set use_peft: true"
        )
    fields.require("model_name_or_path")
    experiment = Experiment(f"TRL's {fields.where}")
    put_base(experiment, str(fields.take_text("model_name_or_path")), take_bits(fields), folder)
    _put_data(experiment, fields, folder)
    targets = take_targets(fields, "lora_target_modules", "lora_target_parameters")
    if targets is None:
        fields.assumed.append(f"lora_target_modules {', '.join(USUAL_TARGETS)}")
    experiment.values |= {
        "adapter.rank": fields.take_count("lora_r", 16),
        "adapter.alpha": fields.take_number("lora_alpha", 32),
        "adapter.scaling": scaling_rule(fields.take_flag("use_rslora")),
        "adapter.targets": targets or USUAL_TARGETS,
        "adapter.dropout": fields.take_number("lora_dropout", 0.05),
        "train.batch_size": fields.take_count("per_device_train_batch_size", 8),
        "train.accumulation": fields.take_count("gradient_accumulation_steps", 1),
        "train.clip": fields.take_number("max_grad_norm", 1.0) or None,
        "precision": "bf16" if fields.take_flag("bf16", not values.get("fp16")) else "float32",
        "seed": fields.take_whole("seed", 42),
    }
    put_optimizer(experiment, fields, "optim", 2e-5)
    put_length(experiment, fields, "num_train_epochs", 3.0)
    put_schedule(experiment, fields, "lr_scheduler_type", "linear")
    if fields.assumed:
        experiment.notes.defaults.append(f"TRL's defaults: {', '.join(fields.assumed)}")
    note_rest(fields, experiment.notes)
    return experiment


def _put_data(experiment: Experiment, fields: Fields, folder: Path) -> None:
    """Add the first data set: TRL names it in one of four ways, by its version."""
    differs = experiment.notes.differs
    length = "max_length" if "max_length" in fields else "max_seq_length"
    experiment.values["data.sequence_length"] = fields.take_whole(length, 1024)
    sets = _data_sets(fields)
    if not sets:
        raise StudyError(f"{fields.where}: dataset_name is missing: add a value to import it")
    first = Fields(sets[0], f"{fields.where}: the first data set")
    path = first.take_text("path") or first.take_text("id")
    if path is None:
        first.require("path")
    columns = first.take_list("columns") or []
    column = fields.take_text("dataset_text_field")
    found = (format_of(name) for name in [*columns, *([column] if column else [])])
    subset = first.take_text("config") or first.take_text("name")
    rows = Rows(
        key="dataset",
        path=str(path),
        format=next(filter(None, found), AUTO),
        split=first.take_text("split") or "train",
        subset=None if subset == "default" else subset,
    )
    put_rows(experiment, rows, folder)
    note_rest(first, experiment.notes, "dataset.")
    for other in sets[1:]:
        differs.append(f"dataset: {shown(other)} (only the first is trained on)")
    if not fields.take_flag("assistant_only_loss"):
        differs.append(
            "assistant_only_loss: false (of a chat, the loss is on the assistant's turns only)"
        )


def _data_sets(fields: Fields) -> list[dict[str, Any]]:
    splits: list[Any] = fields.take_list("dataset_splits") or [None]
    name, subset = fields.take_text("dataset_name"), fields.take_text("dataset_config")
    split = fields.take_text("dataset_train_split")
    mixer = fields.take_mapping("dataset_mixer")
    mixture = fields.take_mapping("dataset_mixture").get("datasets") or fields.take("datasets")
    if name:
        return [{"path": name, "config": subset, "split": split}]
    if mixer:
        return [{"path": path, "split": splits[0]} for path in mixer]
    if isinstance(mixture, list) and all(isinstance(entry, dict) for entry in mixture):
        return mixture
    return []
