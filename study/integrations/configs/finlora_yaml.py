"""FinLoRA's YAML, as in its documentation of rsLoRA.

Its keys are ``use_rsLoRA``, ``lora_rank``, ``lora_alpha``, ``quant_bits``, ``dataset`` and
``model_name``. Training has the defaults of ``study train``, because the YAML does not describe it.
"""

from pathlib import Path

from study.integrations.configs.experiment import Experiment
from study.integrations.configs.fields import Fields
from study.integrations.configs.notes import Keys
from study.integrations.configs.parts import (
    put_base,
    scaling_rule,
    take_bits,
)
from study.integrations.configs.rows import CONTEXT_TARGET, Rows, put_rows

NO_MORE_KEYS = Keys({}, frozenset())


def read(fields: Fields, folder: Path) -> Experiment:
    """The experiment. ``folder`` holds the file.

    Raises :class:`StudyError` for a missing or wrong value.
    """
    fields.require("model_name", "dataset", "lora_rank", "lora_alpha")
    experiment = Experiment(f"FinLoRA's YAML {fields.where}")
    put_base(experiment, str(fields.take_text("model_name")), take_bits(fields), folder)
    dataset = str(fields.take_text("dataset"))
    put_rows(experiment, Rows("dataset", dataset, CONTEXT_TARGET), folder)
    experiment.values |= {
        "adapter.rank": fields.take_whole("lora_rank"),
        "adapter.alpha": fields.take_number("lora_alpha"),
        "adapter.scaling": scaling_rule(fields.take_flag("use_rsLoRA")),
    }
    experiment.notes.defaults.append(
        "targets, optimizer, learning rate and steps: defaults of study train"
    )
    NO_MORE_KEYS.sort(fields, experiment.notes)
    return experiment
