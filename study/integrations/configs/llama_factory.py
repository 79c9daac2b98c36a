"""LLaMA-Factory's YAML (hiyouga/LLaMA-Factory, src/llamafactory/hparams).

A key that is missing has LLaMA-Factory's default, which for many is that of transformers' Trainer.
Its ``dataset_info.json`` explains the names of data sets (data/parser.py).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from study.data.formats import ROLES, SHAREGPT_ROLES
from study.errors import given, unknown
from study.integrations.configs.experiment import Experiment
from study.integrations.configs.keys import (
    GIVE_PATH,
    MESSAGES,
    TOKENIZERS_OWN,
    Keys,
    Mapped,
    Names,
    TrainingKeys,
    first_file,
    format_of,
    load,
    put_heldout,
    put_rows,
)

INFO = "dataset_info.json"
OUR_ROLES = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
    "observation_tag": "tool",
}
PARTS = {
    ("from", "value"): SHAREGPT_ROLES,
    ("role", "content"): dict(zip(ROLES, ROLES, strict=True)),
}
"""The parts of a turn that the toolkit reads, and our role for each name of a role."""
ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
"""The columns of other rows, and their usual names."""


class LlamaFactory(TrainingKeys):
    """The keys of the YAML."""

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
    max_samples: int | None = None
    val_size: float = 0.0


class Entry(Keys):
    """A data set in ``dataset_info.json``."""

    file_name: str = ""
    hf_hub_url: str = ""
    split: str = "train"
    subset: str = ""
    formatting: str = "alpaca"
    columns: Mapped
    tags: Mapped


def read(values: Mapping[str, Any], where: str, folder: Path) -> Experiment:
    """The experiment. ``folder`` holds the file ``where``.

    Raises :class:`StudyError` for a missing or wrong value, a file that exports or serves a model,
    a method other than LoRA, an init that changes the base, and training on preferences.
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
    rest: dict[str, Any] = keys.model_extra or {}
    if rest.get("pissa_init"):
        keys.refuse("pissa_init changes the base's weights: remove it")
    defaults = keys.defaults()
    if "adapter__alpha" not in keys.model_fields_set:
        keys.adapter__alpha = 2.0 * keys.adapter__rank
        defaults.append(f"lora_alpha {keys.adapter__alpha}")
    experiment = keys.experiment("LLaMA-Factory's", folder)
    targets = keys.lora_target
    experiment.values |= {
        "adapter.targets": "all-linear" if not targets or "all" in targets else targets,
        "precision": "bf16" if keys.bf16 or rest.get("pure_bf16") else "float32",
    }
    _put_dataset(experiment, keys, folder, stage)
    if defaults:
        experiment.defaults.append(f"LLaMA-Factory's defaults: {', '.join(defaults)}")
    experiment.note_rest(rest)
    return experiment


def _put_dataset(experiment: Experiment, keys: LlamaFactory, folder: Path, stage: str) -> None:
    """Set the first data set, and the examples to hold out. ``folder`` holds the file.

    Raises :class:`StudyError` for a name that ``dataset_info.json`` lacks.
    """
    name, *others = keys.dataset
    for other in others:
        experiment.note("dataset", other, f"only {name} is trained on: join them in a file")
    place = keys.dataset_dir
    parents = () if place.startswith(("REMOTE:", "ONLINE")) else (folder / place, Path(place))
    info = first_file(*(parent / INFO for parent in parents))
    path, entry, format_ = name, Entry.read({}, ""), None
    if info is None:
        experiment.note("dataset", name, f"{INFO} is not in {place}: {GIVE_PATH}")
    else:
        entries = load(info)
        if not isinstance(entries.get(name), dict):
            raise unknown(f"dataset in {INFO}:", name, entries)
        entry = Entry.read(entries[name], f"{name} in {INFO}")
        format_ = _format(experiment, entry, name, stage)
        experiment.note_rest(entry.model_extra, f"{name}.")
        if format_ is None:
            why = f"convert its rows to one of data.format, then {GIVE_PATH}"
            experiment.note("dataset", name, why)
        path = entry.hf_hub_url or (str(info.parent / entry.file_name) if entry.file_name else name)
    if format_ == MESSAGES:
        experiment.note("template", keys.template or None, TOKENIZERS_OWN)
    elif stage == "sft" and keys.template:
        instead = f"data.format={format_}'s prompt" if format_ else "see data.chat_template"
        experiment.note("template", keys.template, instead)
    elif keys.template:
        experiment.ignored.append("template")
    file = put_rows(experiment, "dataset", path, format_, folder, entry.split, entry.subset)
    if keys.max_samples and "data.split" in experiment.values:
        experiment.values["data.split"] += f"[:{keys.max_samples}]"
    elif keys.max_samples:
        experiment.note("max_samples", keys.max_samples, "all rows of the file are read")
    put_heldout(experiment, "val_size", keys.val_size, file)


def _format(experiment: Experiment, entry: Entry, name: str, stage: str) -> str | None:
    """Our format of the entry's rows; None if it can't be read."""
    columns = dict(entry.columns)
    if entry.formatting in ("sharegpt", "openai"):
        tags = {"user_tag": "human", "assistant_tag": "gpt", **entry.tags}
        part = str(tags.pop("role_tag", "from")), str(tags.pop("content_tag", "value"))
        roles = PARTS.get(part, {})
        usual = all(roles.get(str(tag)) == OUR_ROLES.get(key, "") for key, tag in tags.items())
        column = columns.pop("messages", "conversations")
        format_ = MESSAGES if usual and format_of(column) == MESSAGES else None
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
