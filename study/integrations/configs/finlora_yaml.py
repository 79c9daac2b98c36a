"""FinLoRA's YAML, as its documentation of rsLoRA shows it: ``use_rsLoRA, lora_rank, lora_alpha, quant_bits, dataset,
model_name``. It says nothing of training, so that is as ``study train`` has it."""

from pathlib import Path

from study.integrations.configs.experiment import Experiment
from study.integrations.configs.fields import Fields
from study.integrations.configs.parts import (
    put_base,
    put_data_file,
    scaling_rule,
    take_bits,
    tell_the_rest,
)


def read(fields: Fields, folder: Path) -> Experiment:
    """The experiment; ``folder`` is where the file lies. Raises :class:`StudyError` for a missing or wrong value."""
    fields.require("model_name", "dataset", "lora_rank", "lora_alpha")
    experiment = Experiment(f"FinLoRA's YAML {fields.where}")
    put_base(experiment, str(fields.take_text("model_name")), take_bits(fields), folder)
    put_data_file(experiment, "dataset", str(fields.take_text("dataset")), folder)
    experiment.values |= {
        "adapter.rank": fields.take_whole("lora_rank"),
        "adapter.alpha": fields.take_number("lora_alpha"),
        "adapter.scaling": scaling_rule(fields.take_flag("use_rsLoRA")),
    }
    experiment.assumed.append("targets, optimizer, learning rate and steps: study train's own")
    tell_the_rest(experiment, fields)
    return experiment
