"""Tools on transformers' Trainer and PEFT: LLaMA-Factory's YAML, TRL's, Unsloth's, PEFT's file.

- LLaMA-Factory (hiyouga/LLaMA-Factory, src/llamafactory/hparams). Its ``dataset_info.json``
  explains the names of data sets (data/parser.py);
- TRL's YAML for ``trl sft --config``, also that of the alignment-handbook;
- Unsloth Studio's YAML for ``unsloth train --config`` (unslothai/unsloth, unsloth_cli/config.py;
  optimizer, schedule and clipping: studio/backend/core/training/trainer.py);
- PEFT's ``adapter_config.json``, which describes an adapter and names its base, nothing else.

A missing key has the tool's default, which is often the Trainer's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field

from study.errors import StudyError, given, short, unknown
from study.integrations.configs.experiment import Experiment
from study.integrations.configs.keys import (
    GIVE_PATH,
    MESSAGES,
    TOKENIZERS_OWN,
    AdapterKeys,
    Keys,
    Mapped,
    Names,
    Rows,
    Targets,
    TrainingKeys,
    all_targets,
    first_file,
    format_of,
    load,
    note_init,
    put_heldout,
    put_rows,
    unusual,
)
from study.vocabulary.peft_fields import refusal
from study.vocabulary.sources import AUTO

INFO = "dataset_info.json"
TAGS = {
    "role_tag": ("from", "role"),
    "content_tag": ("value", "content"),
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant"),
    "system_tag": ("system",),
    "observation_tag": ("observation", "tool"),
}
"""The names of a turn's parts and of its roles that the toolkit reads."""
ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
"""The columns of other rows, and their usual names."""


class LlamaFactory(TrainingKeys):
    tool = "LLaMA-Factory"
    adapter__rank: int = Field(8, alias="lora_rank")
    adapter__alpha: float = Field(0.0, alias="lora_alpha")
    optimizer__lr: float = Field(5e-5, alias="learning_rate")
    lora_target: Names
    quant_bits: Literal[4, 8] | None = Field(None, alias="quantization_bit")
    bf16: bool = False
    stage: str = ""
    finetuning_type: str = ""
    dataset: Names
    dataset_dir: str = "data"
    template: str = ""
    data__sequence_length: int = Field(2048, alias="cutoff_len")
    packing: bool | None = None
    neat_packing: bool = False
    max_samples: int | None = None
    val_size: float = 0.0


class Entry(Keys):
    file_name: str = ""
    hf_hub_url: str = ""
    split: str = "train"
    subset: str = ""
    formatting: str = "alpaca"
    columns: Mapped
    tags: Mapped


def read_llama_factory(values: Mapping[str, Any], where: str, folder: Path) -> Experiment:
    """The experiment. ``folder`` holds the file ``where``.

    Raises :class:`StudyError` for a missing or wrong value and for files that do not train LoRA: to
    export or serve a model, another method, an init that changes the base, or preferences.
    """
    keys = LlamaFactory.read(values, where)
    if not keys.dataset:
        keys.refuse("dataset is missing, so it trains nothing: give the file that trains")
    stage = keys.stage or "sft"
    if stage not in ("sft", "pt"):
        keys.refuse(f"stage: {given(stage)} trains on no targets: give stage: sft")
    if keys.finetuning_type not in ("", "lora"):
        keys.refuse(
            f"finetuning_type={given(keys.finetuning_type)} is not LoRA: give finetuning_type: lora"
        )
    if keys.rest.get("pissa_init"):
        keys.refuse("pissa_init changes the base's weights: remove it")
    defaults = list[str]()
    if "adapter__alpha" not in keys.model_fields_set:
        keys.adapter__alpha = 2.0 * keys.adapter__rank
        defaults.append(f"lora_alpha {keys.adapter__alpha}")
    experiment = keys.experiment(folder)
    targets = keys.lora_target
    experiment.values |= {
        "adapter.targets": "all-linear" if not targets or "all" in targets else targets,
        "precision": "bf16" if keys.bf16 or keys.rest.get("pure_bf16") else "float32",
    }
    if keys.packing or keys.neat_packing:
        experiment.values["data.sample_packing"] = True
        if not keys.neat_packing:
            why = "each example is attended to alone, as with neat_packing"
            experiment.note("packing", True, why)
    _put_datasets(experiment, keys, folder, stage)
    keys.finish(experiment, *defaults)
    return experiment


def _put_datasets(experiment: Experiment, keys: LlamaFactory, folder: Path, stage: str) -> None:
    """Set the data, and the examples to hold out. ``folder`` holds the file.

    Raises :class:`StudyError` for a name that ``dataset_info.json`` lacks.
    """
    place = keys.dataset_dir
    info = first_file(folder / place / INFO, Path(place, INFO))
    if info is None:
        names = ", ".join(keys.dataset)
        experiment.missing.append(f"dataset: {names} ({INFO} is not in {place}: {GIVE_PATH})")
        data_sets = [Rows("dataset", keys.dataset[0], None)]
    else:
        chats = stage == "sft" and keys.template != "alpaca"
        data_sets = [_data_set(experiment, info, name, stage, chats) for name in keys.dataset]
    is_chat = stage == "sft" and data_sets[0].format in (None, "alpaca_chat", MESSAGES)
    template = keys.template if is_chat and keys.template == "chatml" else None
    if is_chat and keys.template and not template:
        # Its templates are copies of those that the models of this name have.
        experiment.note("template", keys.template, TOKENIZERS_OWN, detail=True)
    elif not is_chat and keys.template not in ("", "alpaca"):
        experiment.ignored.append("template")
    others = {"max_samples": keys.max_samples, "chat_template": template}
    file = put_rows(experiment, data_sets, folder, **others)
    put_heldout(experiment, "val_size", keys.val_size, file)


def _data_set(experiment: Experiment, info: Path, name: str, stage: str, chats: bool) -> Rows:
    """The data set ``name`` of the file ``info``. ``chats``: all rows go through a template."""
    entries = load(info)
    if not isinstance(entries.get(name), dict):
        raise unknown(f"dataset in {INFO}:", name, entries)
    entry = Entry.read(entries[name], f"{name} in {INFO}")
    format_ = _format(experiment, entry, name, stage)
    experiment.note_rest(entry.rest, f"{name}.")
    if format_ is None:
        why = f"convert its rows to one of data.format, then {GIVE_PATH}"
        experiment.note("dataset", name, why)
    elif format_ == "alpaca" and chats:
        format_ = "alpaca_chat"
    path = entry.hf_hub_url or (str(info.parent / entry.file_name) if entry.file_name else name)
    return Rows("dataset", path, format_, entry.split, entry.subset)


def _format(experiment: Experiment, entry: Entry, name: str, stage: str) -> str | None:
    """Our format of the entry's rows; None if it can't be read."""
    columns = dict(entry.columns)
    if entry.formatting in ("sharegpt", "openai"):
        is_chat = format_of(columns.pop("messages", "conversations")) == MESSAGES
        is_usual = is_chat and entry.tags.keys() <= TAGS.keys()
        format_ = MESSAGES if is_usual and not unusual(entry.tags, TAGS) else None
        if columns.get("system") == "system":
            del columns["system"]  # data.format=messages reads this field
    else:
        # If columns are named, LLaMA-Factory reads no others.
        usual_names = {} if columns else ALPACA
        prompt, query, answer = (columns.pop(key, usual_names.get(key)) for key in ALPACA)
        names = [each for each in (prompt, None if stage == "pt" else answer) if each]
        format_ = format_of(*names) if query in (None, "input") else None
        if format_ == "alpaca" and query is None:
            experiment.differs.append(f"{name}.columns: no query (a field input is read)")
    experiment.note_rest(columns, f"{name}.columns.")
    return format_


USUAL_TARGETS = ["q_proj", "v_proj"]
"""PEFT's default targets in Llama, Mistral, Qwen and Gemma."""
UNSLOTH_TARGETS = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
UNSLOTH_SECTIONS = ("data", "training", "lora", "logging")
UNSLOTH_FORMATS = {
    "auto": AUTO,
    "alpaca": "alpaca",
    **dict.fromkeys(("chatml", "sharegpt", "conversational"), MESSAGES),
    "raw": "completion",
}
PREFERENCES = "beta max_prompt_length reward_funcs reward_model_path num_generations"
"""Keys of TRL's other trainers."""


class Trl(TrainingKeys):
    """The keys of the YAML. TRL has named its data sets in four ways."""

    tool = "TRL"
    adapter__rank: int = Field(16, alias="lora_r")
    adapter__alpha: float = Field(32.0, alias="lora_alpha")
    adapter__dropout: float = Field(0.05, alias="lora_dropout")
    optimizer__lr: float = Field(2e-5, alias="learning_rate")
    use_rslora: bool = False
    use_peft: bool = False
    lora_target_modules: Targets
    lora_target_parameters: Targets
    bf16: bool | None = None
    data__sample_packing: bool = Field(False, alias="packing")
    data__sequence_length: int = Field(
        1024, alias="max_length", validation_alias=AliasChoices("max_length", "max_seq_length")
    )
    assistant_only_loss: bool = False
    dataset_name: str = ""
    dataset_config: str = ""
    dataset_train_split: str = ""
    dataset_text_field: str = ""
    dataset_splits: Names
    dataset_mixer: Mapped
    dataset_mixture: Mapped
    datasets: Annotated[list[dict[str, Any]], Field(default_factory=list)]

    def data_sets(self) -> list[dict[str, Any]]:
        if self.dataset_name:
            split = self.dataset_train_split
            return [{"path": self.dataset_name, "config": self.dataset_config, "split": split}]
        if self.dataset_mixer:
            split = (self.dataset_splits or [""])[0]
            return [{"path": path, "split": split} for path in self.dataset_mixer]
        found = self.dataset_mixture.get("datasets") or self.datasets
        return found or self.refuse("dataset_name is missing: add a value to import it")


class TrlDataset(Keys):
    path: str = Field("", validation_alias=AliasChoices("path", "id"))
    split: str = "train"
    subset: str = Field("", validation_alias=AliasChoices("config", "name"))
    columns: Names


def read_trl(values: Mapping[str, Any], where: str, folder: Path) -> Experiment:
    """The experiment. Raises :class:`StudyError` as :func:`read_llama_factory` does."""
    if other := next((key for key in PREFERENCES.split() if values.get(key) is not None), None):
        raise StudyError(
            f"{where}: {other} is for training on preferences or rewards, study train trains on "
            "targets: give a configuration of trl sft"
        )
    keys = Trl.read(values, where)
    if not keys.use_peft:
        keys.refuse("use_peft is not true, which trains all weights: set use_peft: true")
    experiment, defaults = keys.experiment(folder), list[str]()
    targets = all_targets(keys.lora_target_modules, keys.lora_target_parameters)
    bf16 = keys.bf16
    if targets is None:
        defaults.append(f"lora_target_modules {', '.join(USUAL_TARGETS)}")
    if bf16 is None and not values.get("fp16"):
        bf16 = True
        defaults.append("bf16 True")
    experiment.values |= {
        "adapter.targets": targets or USUAL_TARGETS,
        "precision": "bf16" if bf16 else "float32",
    }
    data_sets = []
    for number, entry in enumerate(keys.data_sets(), start=1):
        rows = TrlDataset.read(entry, f"{where}: data set {number}")
        formats = map(format_of, [*rows.columns, keys.dataset_text_field])
        format_, subset = next(filter(None, formats), AUTO), rows.subset.removeprefix("default")
        data_sets.append(Rows("dataset", rows.path, format_, rows.split or "train", subset))
        experiment.note_rest(rows.rest, "dataset.")
    put_rows(experiment, data_sets, folder)
    if not keys.assistant_only_loss:
        why = "of a chat, the loss is on the assistant's turns only"
        experiment.note("assistant_only_loss", False, why)
    keys.finish(experiment, *defaults)
    return experiment


class Unsloth(TrainingKeys):
    """The keys of all sections, with the defaults of its command line and of its trainer."""

    tool = "Unsloth"
    base: str = Field(alias="model")
    adapter__rank: int = Field(64, alias="lora_r")
    adapter__alpha: float = Field(16.0, alias="lora_alpha")
    load_in_4bit: bool = True
    target_modules: Names
    use_loftq: bool = False
    train__batch_size: int = Field(2, alias="batch_size")
    train__accumulation: int = Field(4, alias="gradient_accumulation_steps")
    train__epochs: float = Field(3.0, alias="num_epochs")
    optimizer: str = "adamw_8bit"
    optimizer__lr: float = Field(2e-4, alias="learning_rate")
    optimizer__weight_decay: float = Field(0.01, alias="weight_decay")
    warmup_steps: float | None = 5
    seed: int | None = Field(3407, alias="random_seed")
    data__sequence_length: int = Field(2048, alias="max_seq_length")
    data__sample_packing: bool = Field(False, alias="packing")
    training_type: str = "lora"
    dataset: str = ""
    local_dataset: Names
    format_type: Literal[tuple(UNSLOTH_FORMATS)] = "auto"  # type: ignore[valid-type]
    train_on_completions: bool = False


def read_unsloth(values: Mapping[str, Any], where: str, folder: Path) -> Experiment:
    """The experiment. Raises :class:`StudyError` as :func:`read_llama_factory` does."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        is_section = key in UNSLOTH_SECTIONS and isinstance(value, dict)
        flat |= value if is_section else {key: value}
    keys = Unsloth.read(flat, where)
    if keys.training_type.lower() != "lora":
        keys.refuse(f"training_type={given(keys.training_type)} is not LoRA: give lora")
    if keys.use_loftq:
        keys.refuse("use_loftq changes the base's weights: remove it")
    names = [keys.dataset] if keys.dataset else keys.local_dataset
    if not names:
        keys.refuse("dataset is missing: add a value to import it")
    experiment = keys.experiment(folder)
    experiment.values |= {
        "adapter.targets": keys.target_modules or UNSLOTH_TARGETS.split(),
        "precision": "bf16",
    }
    format_ = UNSLOTH_FORMATS[str(keys.format_type)]
    put_rows(experiment, [Rows("dataset", name, format_, "train") for name in names], folder)
    if not keys.train_on_completions:
        experiment.note("train_on_completions", False, "the loss is on targets only")
    for key in ("finetune_language_layers", "finetune_attention_modules", "finetune_mlp_modules"):
        if keys.rest.pop(key, True) is False:
            experiment.note(key, False, "adapters are on all of target_modules")
    keys.finish(experiment)
    return experiment


class Peft(AdapterKeys):
    """The fields that describe an adapter."""

    tool = "PEFT"
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
    """The experiment. Raises :class:`StudyError` also for settings with which it is not plain LoRA
    (:mod:`study.vocabulary.peft_fields`)."""
    if (kind := values.get("peft_type")) != "LORA":
        raise StudyError(f"{where}: peft_type={short(kind)} is not LoRA: only LORA can be imported")
    if why := refusal({**values, "target_parameters": None}, trained=False):
        raise StudyError(f"{where}: {why}")
    keys = Peft.read(values, where)
    if not keys.base:
        raise StudyError(f"{where} names no base: give one with --base (a folder or a hub name)")
    experiment = keys.experiment(folder)
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
    experiment.note_rest(keys.rest)
    return experiment
