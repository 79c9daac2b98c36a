"""PEFT's ``adapter_config.json``. It describes the adapter and names its base, nothing else."""

from pathlib import Path

from study.errors import StudyError
from study.integrations.configs.experiment import Experiment
from study.integrations.configs.fields import Fields
from study.integrations.configs.parts import list_untaken, put_base, scaling_rule

USUAL = {
    "bias": "none",
    "init_lora_weights": True,
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
    "task_type": "CAUSAL_LM",
}
"""Defaults that PEFT writes to the file. They need no counterpart."""

BOOKKEEPING = ("auto_mapping", "fan_in_fan_out", "inference_mode", "peft_version")
"""Keys that do not affect training, whatever their value."""


def read(fields: Fields, folder: Path) -> Experiment:
    """The experiment. ``folder`` holds the file.

    Raises :class:`StudyError` for an adapter other than LoRA, and for a missing or wrong value.
    """
    kind = fields.take("peft_type")
    if kind != "LORA":
        raise StudyError(
            f"{fields.where}: peft_type={kind!r} is not LoRA: only LORA can be imported"
        )
    fields.require("base_model_name_or_path", "r", "lora_alpha", "target_modules")
    experiment = Experiment(f"PEFT's {fields.where}")
    put_base(experiment, str(fields.take_text("base_model_name_or_path")), None, folder)
    experiment.values |= {
        "adapter.rank": fields.take_whole("r"),
        "adapter.alpha": fields.take_number("lora_alpha"),
        "adapter.scaling": scaling_rule(fields.take_flag("use_rslora")),
        "adapter.targets": fields.take("target_modules"),
        "adapter.dropout": fields.take_number("lora_dropout", 0.0),
    }
    for key, value in fields.untaken().items():
        if key in BOOKKEEPING or USUAL.get(key) == value:
            fields.take(key)
    experiment.assumed.append(
        "data (give data=jsonl data.path=...), optimizer and steps: defaults of study train"
    )
    list_untaken(experiment, fields)
    return experiment
