"""PEFT's ``adapter_config.json``: what the adapter is. It names a base, and neither data nor training."""

from pathlib import Path

from study.errors import StudyError
from study.integrations.configs.experiment import Experiment
from study.integrations.configs.fields import Fields
from study.integrations.configs.parts import put_base, scaling_rule, tell_the_rest

USUAL = {
    "bias": "none",
    "init_lora_weights": True,
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
    "task_type": "CAUSAL_LM",
}
"""Values that ask for nothing: PEFT writes its defaults out."""

BOOKKEEPING = ("auto_mapping", "fan_in_fan_out", "inference_mode", "peft_version")
"""Keys that ask for nothing of training, whatever their value."""


def read(fields: Fields, folder: Path) -> Experiment:
    """The experiment; ``folder`` is where the file lies. Raises :class:`StudyError` for another kind of adapter than
    LoRA and for a missing or wrong value."""
    kind = fields.take("peft_type")
    if kind != "LORA":
        raise StudyError(
            f"{fields.where}: peft_type={kind!r} is no LoRA adapter: only LORA can be imported"
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
        "data (give data=jsonl data.path=...), optimizer and steps: study train's own"
    )
    tell_the_rest(experiment, fields)
    return experiment
