"""PEFT's ``adapter_config.json``. It describes the adapter and names its base, nothing else."""

from pathlib import Path

from study.errors import StudyError
from study.integrations.configs.experiment import Experiment, note_rest, shown
from study.integrations.configs.fields import Fields
from study.integrations.configs.settings import (
    put_base,
    refuse_other_base,
    scaling_rule,
    take_targets,
)
from study.vocabulary.peft_fields import refusal

USUAL_TARGETS = ["q_proj", "v_proj"]
"""What PEFT adapts in Llama, Mistral, Qwen and Gemma if nothing is said."""


def read(fields: Fields, folder: Path) -> Experiment:
    """The experiment. ``folder`` holds the file.

    Raises :class:`StudyError` for an adapter other than LoRA, for a setting with which it is not
    plain LoRA (:mod:`study.vocabulary.peft_fields`), and for a missing or wrong value.
    """
    kind = fields.take("peft_type")
    if kind != "LORA":
        raise StudyError(
            f"{fields.where}: peft_type={kind!r} is not LoRA: only LORA can be imported"
        )
    modules = fields.untaken().get("target_modules")
    targets = take_targets(fields, "target_modules", "target_parameters")
    if why := refusal({**fields.untaken(), "target_modules": modules}, trained=False):
        raise StudyError(f"{fields.where}: {why}")
    if "base_model_name_or_path" not in fields:
        raise StudyError(
            f"{fields.where} names no base: give one with --base (a folder or a hub name)"
        )
    fields.require("r", "lora_alpha")
    experiment = Experiment(f"PEFT's {fields.where}")
    put_base(experiment, str(fields.take_text("base_model_name_or_path")), None, folder)
    experiment.values |= {
        "adapter.rank": fields.take_whole("r"),
        "adapter.alpha": fields.take_number("lora_alpha"),
        "adapter.scaling": scaling_rule(fields.take_flag("use_rslora")),
        "adapter.targets": targets or USUAL_TARGETS,
        "adapter.dropout": fields.take_number("lora_dropout", 0.0),
    }
    if not targets:
        experiment.notes.defaults.append(
            f"target_modules: null ({', '.join(USUAL_TARGETS)}, PEFT's choice in most families)"
        )
    for key, one in (("rank_pattern", "rank"), ("alpha_pattern", "alpha")):
        if pattern := fields.take_mapping(key):
            experiment.notes.differs.append(f"{key}: {shown(pattern)} (one {one} for all layers)")
    if init := refuse_other_base(fields, "init_lora_weights"):
        experiment.notes.differs.append(
            f"init_lora_weights: {init} (adapter.init=kaiming, PEFT's default)"
        )
    experiment.notes.defaults.append(
        "data (give data=file data.path=...), optimizer and steps: defaults of study train"
    )
    note_rest(fields, experiment.notes)
    return experiment
