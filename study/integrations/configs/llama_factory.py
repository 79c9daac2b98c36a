"""LLaMA-Factory's YAML (hiyouga/LLaMA-Factory, src/llamafactory/hparams).

A key that is missing has LLaMA-Factory's default, which for many is that of transformers' Trainer.
:mod:`~study.integrations.configs.llama_factory_data` reads the data set;
:mod:`~study.integrations.configs.llama_factory_keys` lists the keys that no reader takes.
"""

from pathlib import Path

from study.errors import StudyError, given
from study.integrations.configs import llama_factory_keys
from study.integrations.configs.experiment import Experiment
from study.integrations.configs.fields import Fields
from study.integrations.configs.llama_factory_data import put_dataset
from study.integrations.configs.parts import put_base, scaling_rule, take_quant_bits
from study.integrations.configs.training import bf16, put_length, put_optimizer, put_schedule

STAGES = {
    "sft": "",
    "pt": "",
    "dpo": "trains on preferences",
    "kto": "trains on preferences",
    "rm": "trains a reward model",
    "ppo": "trains with a reward model",
}
"""Each stage, and what it does if that is not training on targets."""


def read(fields: Fields, folder: Path) -> Experiment:
    """The experiment. ``folder`` holds the file.

    Raises :class:`StudyError` for a missing or wrong value, a file that exports or serves a model,
    a method other than LoRA, an init that changes the base, and training on preferences.
    """
    stage = _check_task(fields)
    fields.require("model_name_or_path", "dataset")
    experiment = Experiment(f"LLaMA-Factory's {fields.where}")
    bits = take_quant_bits(fields, "quantization_bit")
    put_base(experiment, str(fields.take_text("model_name_or_path")), bits, folder)
    put_dataset(experiment, fields, folder, stage)
    rank = fields.take_count("lora_rank", 8)
    targets = fields.take_list("lora_target") or ["all"]
    experiment.values |= {
        "adapter.rank": rank,
        "adapter.alpha": fields.take_number("lora_alpha", 2.0 * rank),
        "adapter.scaling": scaling_rule(fields.take_flag("use_rslora")),
        "adapter.targets": "all-linear" if "all" in targets else targets,
        "adapter.dropout": fields.take_number("lora_dropout", 0.0),
        "train.batch_size": fields.take_count("per_device_train_batch_size", 8),
        "train.accumulation": fields.take_count("gradient_accumulation_steps", 1),
        "train.clip": fields.take_number("max_grad_norm", 1.0) or None,
    }
    put_optimizer(experiment, fields, "optim", 5e-5)
    put_length(experiment, fields, "num_train_epochs", 3.0)
    put_schedule(experiment, fields, "lr_scheduler_type", "linear")
    pure = fields.untaken().get("pure_bf16")
    experiment.values["precision"] = bf16(fields.take_flag("bf16") or pure)
    experiment.values["seed"] = fields.take_whole("seed", 42)
    if fields.assumed:
        experiment.notes.defaults.append(f"LLaMA-Factory's defaults: {', '.join(fields.assumed)}")
    llama_factory_keys.TOP.sort(fields, experiment.notes)
    return experiment


def _check_task(fields: Fields) -> str:
    """The stage. Raises :class:`StudyError` for a file that trains no LoRA on targets."""
    values = fields.untaken()
    if "peft_config" in values or "model" in values:
        raise StudyError(
            f"{fields.where} has the form of LLaMA-Factory's v1 (model, peft_config): "
            "write it with the keys of v0 (model_name_or_path, lora_rank, dataset, ...)"
        )
    if "export_dir" in values:
        raise StudyError(
            f"{fields.where}: export_dir exports a model and trains nothing: "
            "give the file that trains it"
        )
    if not {"stage", "dataset"} & values.keys():
        raise StudyError(
            f"{fields.where} has neither stage nor dataset, so it trains nothing: "
            "give the file that trains the adapter"
        )
    stage = str(fields.take("stage") or "sft")
    if why := STAGES.get(stage, "is unknown"):
        raise StudyError(
            f"{fields.where}: stage: {given(stage)} {why}, study train on targets: give stage: sft"
        )
    method = fields.take("finetuning_type") or "lora"
    if method != "lora":
        raise StudyError(
            f"{fields.where}: finetuning_type={given(method)} is not LoRA: "
            "give finetuning_type: lora"
        )
    if fields.take("pissa_init"):
        raise StudyError(f"{fields.where}: pissa_init changes the base's weights: remove it")
    return stage
