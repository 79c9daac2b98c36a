"""FinLoRA's YAML of its documentation of rsLoRA, and entries of its ``finetune_configs.json``.

The YAML does not describe training, which has the defaults of ``study train``. FinLoRA's
``finetune.py`` merges an entry into its own Axolotl configuration and trains with Axolotl; this
reader does the same.
"""

from pathlib import Path

from study.integrations.configs import axolotl
from study.integrations.configs.experiment import Experiment, note_rest, shown
from study.integrations.configs.fields import Fields
from study.integrations.configs.settings import (
    CONTEXT_TARGET,
    Rows,
    put_base,
    put_rows,
    scaling_rule,
    take_bits,
)

TEMPLATE = {
    "adapter": "lora",
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "num_epochs": 4,
    "learning_rate": 2e-4,
    "lr_scheduler": "cosine",
    "warmup_steps": 10,
    "weight_decay": 0.0,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "lora_target_modules": ["q_proj", "v_proj", "k_proj"],
    "val_set_size": 0.02,
    "sequence_len": 4096,
    "bf16": "auto",
    "deepspeed": "deepspeed_configs/zero1.json",
}
"""``finetune.py``'s values for missing keys (wangd12rpi/FinLoRA, lora/finetune.py)."""

PROMPT = {
    "field_instruction": "context",
    "field_output": "target",
    "format": "[INST] {instruction} [/INST]",
    "no_input_format": "[INST] {instruction} [/INST]",
}
SAME = (
    "base_model",
    "lora_r",
    "lora_alpha",
    "learning_rate",
    "num_epochs",
    "gradient_accumulation_steps",
    "peft_use_rslora",
    "peft_use_dora",
)
"""Keys that have the same meaning in an entry and in Axolotl."""


def read_yaml(fields: Fields, folder: Path) -> Experiment:
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
    note_rest(fields, experiment.notes)
    return experiment


def read_entry(fields: Fields, folder: Path) -> Experiment:
    """The experiment. ``folder`` holds the file.

    Raises :class:`StudyError` for a missing or wrong value.
    """
    fields.require("base_model", "dataset_path", "lora_r")
    bits = take_bits(fields)
    own = {key: fields.take(key) for key in SAME if key in fields}
    if "batch_size" in fields:
        own["micro_batch_size"] = fields.take("batch_size")
    dataset = {"path": fields.take_text("dataset_path"), "type": PROMPT}
    optimizer = "paged_adamw_8bit" if bits == 4 else "adamw_bnb_8bit"
    whole = TEMPLATE | own | {"quant_bits": bits, "datasets": [dataset], "optimizer": optimizer}
    experiment = axolotl.read(Fields(whole, fields.where), folder)
    experiment.origin = f"FinLoRA's entry {fields.where}"
    silent = [
        f"{key} {shown(value)}"
        for key, value in TEMPLATE.items()
        if key not in own and key != "adapter"
    ]
    experiment.notes.defaults.insert(0, f"FinLoRA's finetune.py sets {', '.join(silent)}")
    experiment.notes.ignored += [
        f"{shown(key)} (finetune.py does not read it)" for key in fields.untaken()
    ]
    return experiment
