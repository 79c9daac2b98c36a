"""LLaMA-Factory's YAML (hiyouga/LLaMA-Factory, src/llamafactory/hparams).

A key that is missing has LLaMA-Factory's default, which for many is that of transformers' Trainer.
Its ``dataset_info.json`` explains the names of data sets (data/parser.py).
"""

from pathlib import Path

from study.data.formats import ROLES, SHAREGPT_ROLES
from study.errors import StudyError, given, unknown
from study.integrations.configs.experiment import Experiment, note_rest, shown
from study.integrations.configs.fields import Fields, load
from study.integrations.configs.settings import (
    MESSAGES,
    TOKENIZERS_OWN,
    Rows,
    bf16,
    first_file,
    format_of,
    put_base,
    put_heldout,
    put_length,
    put_optimizer,
    put_rows,
    put_schedule,
    scaling_rule,
    take_quant_bits,
)

STAGES = {
    "sft": "",
    "pt": "",
    "dpo": "trains on preferences",
    "kto": "trains on preferences",
    "rm": "trains a reward model",
    "ppo": "trains with a reward model",
}
"""Each stage, and what it does if that is not training on targets."""
INFO = "dataset_info.json"
REMOTE = ("REMOTE:", "ONLINE")
CONVERSATIONS = ("sharegpt", "openai")
TAGS = {"role": "from", "content": "value", "user": "human", "assistant": "gpt"}
"""LLaMA-Factory's names of a turn's parts and roles."""
OUR_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "observation": "tool"}
PARTS = {
    ("from", "value"): SHAREGPT_ROLES,
    ("role", "content"): dict(zip(ROLES, ROLES, strict=True)),
}
"""The parts of a turn that the toolkit reads, and our role for each name of a role."""
ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
"""The columns of other rows, and their usual names."""
CONVERT = "convert its rows to one of data.format, then give data.path=... when you train"


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
    note_rest(fields, experiment.notes)
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


def put_dataset(experiment: Experiment, fields: Fields, folder: Path, stage: str) -> None:
    """Add the first data set, and the examples to hold out. ``folder`` holds the file.

    Raises :class:`StudyError` for a name that ``dataset_info.json`` lacks.
    """
    differs = experiment.notes.differs
    experiment.values["data.sequence_length"] = fields.take_whole("cutoff_len", 2048)
    names = fields.take_list("dataset") or []
    for name in names[1:]:
        differs.append(f"dataset: {name} (only {names[0]} is trained on: join them in a file)")
    place = str(fields.take_text("dataset_dir", "data"))
    rows = _rows(experiment, names[0], place, folder, stage)
    template = fields.take_text("template")
    if rows.format == MESSAGES:
        differs.append(f"template: {template} ({TOKENIZERS_OWN})")
    elif stage == "sft" and template:
        instead = f"data.format={rows.format}'s prompt" if rows.format else "see data.chat_template"
        differs.append(f"template: {template} ({instead})")
    elif template:
        experiment.notes.ignored.append("template")
    file = put_rows(experiment, rows, folder)
    if most := fields.take_whole("max_samples"):
        if "data.split" in experiment.values:
            experiment.values["data.split"] += f"[:{most}]"
        else:
            differs.append(f"max_samples: {most} (all rows of the file are read)")
    put_heldout(experiment, fields, "val_size", file)


def _rows(experiment: Experiment, name: str, place: str, folder: Path, stage: str) -> Rows:
    """The rows of one data set, as ``dataset_info.json`` describes them."""
    parents = () if place.startswith(REMOTE) else (folder / place, Path(place))
    info = first_file(*(parent / INFO for parent in parents))
    if info is None:
        experiment.notes.differs.append(
            f"dataset: {name} ({INFO} is not in {place}: give data.path=... when you train)"
        )
        experiment.groups["data"] = "file"
        return Rows("dataset", name, None)
    entries = load(info)
    if name not in entries:
        raise unknown(f"dataset in {INFO}:", name, entries)
    if not isinstance(entries[name], dict):
        raise StudyError(
            f"{info}: {name}={shown(entries[name])} is not a mapping of keys to values"
        )
    entry = Fields(entries[name], f"{name} in {INFO}")
    format_ = _format(experiment, entry, name, stage)
    path, hub = entry.take_text("file_name"), entry.take_text("hf_hub_url")
    split, subset = entry.take_text("split"), entry.take_text("subset")
    note_rest(entry, experiment.notes, f"{name}.")
    if format_ is None:
        experiment.notes.differs.append(f"dataset: {name} ({CONVERT})")
    where = hub or (str(info.parent / path) if path else name)
    return Rows("dataset", where, format_, split or "train", subset)


def _format(experiment: Experiment, entry: Fields, name: str, stage: str) -> str | None:
    """Our format of the entry's rows; None if it can't be read."""
    formatting = entry.take_text("formatting") or "alpaca"
    columns = Fields(entry.take_mapping("columns"), f"columns of {entry.where}")
    tags = {key.removesuffix("_tag"): str(t) for key, t in entry.take_mapping("tags").items()}
    if formatting in CONVERSATIONS:
        column = columns.take_text("messages") or "conversations"
        usual = _tags_are_usual(tags) and format_of(column) == MESSAGES
        format_ = MESSAGES if usual else None
        if columns.untaken().get("system") == "system":
            columns.take_text("system")  # data.format=messages reads this field
    else:
        # If columns are named, LLaMA-Factory reads no others.
        names_of = {} if columns.untaken() else ALPACA
        prompt, query, answer = (columns.take_text(key) or names_of.get(key) for key in ALPACA)
        names = [name for name in (prompt, None if stage == "pt" else answer) if name]
        format_ = format_of(*names) if query in (None, "input") else None
        if format_ == "alpaca" and query is None:
            experiment.notes.differs.append(f"{name}.columns: no query (a field input is read)")
    note_rest(columns, experiment.notes, f"{name}.columns.")
    return format_


def _tags_are_usual(tags: dict[str, str]) -> bool:
    """Whether the toolkit reads conversations whose parts and roles have these names."""
    named = {**TAGS, **tags}
    roles = PARTS.get((named.pop("role"), named.pop("content")), {})
    return all(roles.get(tag, "") == OUR_ROLES.get(key) for key, tag in named.items())
