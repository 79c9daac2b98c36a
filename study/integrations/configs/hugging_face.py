"""TRL's YAML for ``trl sft --config``, also that of the alignment-handbook; and PEFT's
``adapter_config.json``, which describes an adapter and names its base, nothing else.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from study.errors import StudyError, short
from study.integrations.configs.experiment import Experiment
from study.integrations.configs.keys import (
    AdapterKeys,
    Keys,
    Mapped,
    Names,
    Targets,
    TrainingKeys,
    all_targets,
    format_of,
    note_init,
    put_rows,
)
from study.vocabulary.peft_fields import refusal
from study.vocabulary.sources import AUTO

USUAL_TARGETS = ["q_proj", "v_proj"]
"""What PEFT adapts in Llama, Mistral, Qwen and Gemma if nothing is said."""
PREFERENCES = "beta max_prompt_length reward_funcs reward_model_path num_generations"
"""Keys of TRL's other trainers."""


class Trl(TrainingKeys):
    """The keys of the YAML. TRL has named its data sets in four ways."""

    adapter__rank: int = Field(16, alias="lora_r")
    adapter__alpha: float = Field(32.0, alias="lora_alpha")
    adapter__dropout: float = Field(0.05, alias="lora_dropout")
    optimizer__lr: float = Field(2e-5, alias="learning_rate")
    use_rslora: bool = False
    use_peft: bool = False
    lora_target_modules: Targets
    lora_target_parameters: Targets
    bf16: bool | None = None
    max_length: int | None = None
    max_seq_length: int | None = None
    assistant_only_loss: bool = False
    dataset_name: str = ""
    dataset_config: str = ""
    dataset_train_split: str = ""
    dataset_text_field: str = ""
    dataset_splits: Names
    dataset_mixer: Mapped
    dataset_mixture: Mapped
    datasets: Annotated[list[Any], Field(default_factory=list)]

    def data_sets(self) -> list[dict[str, Any]]:
        """Its data sets in one form."""
        if self.dataset_name:
            split = self.dataset_train_split
            return [{"path": self.dataset_name, "config": self.dataset_config, "split": split}]
        if self.dataset_mixer:
            split = (self.dataset_splits or [""])[0]
            return [{"path": path, "split": split} for path in self.dataset_mixer]
        found = self.dataset_mixture.get("datasets") or self.datasets
        if not found or not all(isinstance(entry, dict) for entry in found):
            self.refuse("dataset_name is missing: add a value to import it")
        return list(found)


class TrlDataset(Keys):
    """One data set of a mixture."""

    path: str = ""
    id: str = ""
    split: str = ""
    config: str = ""
    name: str = ""
    columns: Names


def read_trl(values: Mapping[str, Any], where: str, folder: Path) -> Experiment:
    """The experiment. ``folder`` holds the file ``where``.

    Raises :class:`StudyError` for a missing or wrong value, training of all weights, and training
    on preferences or rewards.
    """
    if other := next((key for key in PREFERENCES.split() if values.get(key) is not None), None):
        raise StudyError(
            f"{where}: {other} is for training on preferences or rewards, study train trains on "
            "targets: give a configuration of trl sft"
        )
    keys = Trl.read(values, where)
    if not keys.use_peft:
        keys.refuse("use_peft is not true, which trains all weights: set use_peft: true")
    experiment, defaults = keys.experiment("TRL's", folder), keys.defaults()
    targets = all_targets(keys.lora_target_modules, keys.lora_target_parameters)
    length, bf16 = keys.max_length or keys.max_seq_length, keys.bf16
    if targets is None:
        defaults.append(f"lora_target_modules {', '.join(USUAL_TARGETS)}")
    if length is None:
        defaults.append("max_length 1024")
    if bf16 is None and not values.get("fp16"):
        bf16 = True
        defaults.append("bf16 True")
    experiment.values |= {
        "adapter.targets": targets or USUAL_TARGETS,
        "data.sequence_length": length or 1024,
        "precision": "bf16" if bf16 else "float32",
    }
    first, *others = keys.data_sets()
    rows = TrlDataset.read(first, f"{where}: the first data set")
    formats = map(format_of, [*rows.columns, keys.dataset_text_field])
    format_ = next(filter(None, formats), AUTO)
    subset = (rows.config or rows.name).removeprefix("default")
    put_rows(
        experiment, "dataset", rows.path or rows.id, format_, folder, rows.split or "train", subset
    )
    experiment.note_rest(rows.model_extra, "dataset.")
    for other_set in others:
        experiment.note("dataset", other_set, "only the first is trained on")
    if not keys.assistant_only_loss:
        why = "of a chat, the loss is on the assistant's turns only"
        experiment.note("assistant_only_loss", False, why)
    if defaults:
        experiment.defaults.append(f"TRL's defaults: {', '.join(defaults)}")
    experiment.note_rest(keys.model_extra)
    return experiment


class Peft(AdapterKeys):
    """The fields that describe an adapter."""

    base: str = Field("", alias="base_model_name_or_path")
    adapter__rank: int = Field(alias="r")
    adapter__alpha: float = Field(alias="lora_alpha")
    adapter__dropout: float = Field(0.0, alias="lora_dropout")
    peft_type: Any
    target_modules: Targets
    target_parameters: Targets
    rank_pattern: Mapped
    alpha_pattern: Mapped


def read_peft(values: Mapping[str, Any], where: str, folder: Path) -> Experiment:
    """The experiment. ``folder`` holds the file ``where``.

    Raises :class:`StudyError` for an adapter other than LoRA, for a setting with which it is not
    plain LoRA (:mod:`study.vocabulary.peft_fields`), and for a missing or wrong value.
    """
    if (kind := values.get("peft_type")) != "LORA":
        raise StudyError(f"{where}: peft_type={short(kind)} is not LoRA: only LORA can be imported")
    if why := refusal({**values, "target_parameters": None}, trained=False):
        raise StudyError(f"{where}: {why}")
    keys = Peft.read(values, where)
    if not keys.base:
        raise StudyError(f"{where} names no base: give one with --base (a folder or a hub name)")
    experiment = keys.experiment("PEFT's", folder)
    targets = all_targets(keys.target_modules, keys.target_parameters)
    experiment.values["adapter.targets"] = targets or USUAL_TARGETS
    if not targets:
        why = f"{', '.join(USUAL_TARGETS)}, PEFT's choice in most families"
        experiment.defaults.append(f"target_modules: null ({why})")
    if keys.rank_pattern:
        experiment.note("rank_pattern", keys.rank_pattern, "one rank for all layers")
    if keys.alpha_pattern:
        experiment.note("alpha_pattern", keys.alpha_pattern, "one alpha for all layers")
    note_init(experiment, keys, "init_lora_weights")
    experiment.defaults.append(
        "data (give data=file data.path=...), optimizer and steps: defaults of study train"
    )
    experiment.note_rest(keys.model_extra)
    return experiment
