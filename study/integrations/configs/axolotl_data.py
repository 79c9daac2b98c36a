"""Axolotl's ``datasets``: the types of src/axolotl/prompt_strategies, as formats of rows."""

from pathlib import Path
from typing import Any

from study.data.formats import SHAREGPT_ROLES
from study.integrations.configs import axolotl_keys
from study.integrations.configs.experiment import Experiment
from study.integrations.configs.fields import Fields
from study.integrations.configs.notes import short
from study.integrations.configs.rows import (
    MESSAGES,
    TOKENIZERS_OWN,
    Rows,
    first_file,
    format_of,
    put_heldout,
    put_rows,
)

FORMATS = {
    "alpaca": "alpaca",
    "completion": "completion",
    "chat_template": MESSAGES,
    "sharegpt": MESSAGES,
    "messages": MESSAGES,
}
"""Our format of a type, by the part of its name before a colon or a point."""
USUAL_VARIANTS = {
    "alpaca": ("", "instruct"),
    "chat_template": ("", "default"),
    "sharegpt": ("", "load"),
}
"""The other part, where it changes neither rows nor prompts."""
RENAME = "rows must have the fields of data.format: rename it"
BUILDERS = ("json", "csv", "parquet")
"""Values of ``ds_type``, and of ``path`` if ``data_files`` names the file."""
PROMPTS = {
    "format": "{instruction} {input} ",
    "no_input_format": "{instruction} ",
    "system_prompt": "",
}
"""What a type that names its fields writes around them, and Axolotl's defaults."""
TEMPLATES = {"tokenizer_default": None, "chatml": "chatml"}
PROPERTIES = ({"role": "from", "content": "value"}, {"role": "role", "content": "content"})


def put_datasets(experiment: Experiment, fields: Fields, folder: Path) -> None:
    """Add the first of ``datasets``, and the examples to hold out. ``folder`` holds the file."""
    experiment.values["data.sequence_length"] = fields.take_whole("sequence_len", 512)
    datasets = fields.take("datasets")
    if not isinstance(datasets, list) or not all(isinstance(entry, dict) for entry in datasets):
        raise fields.wrong(
            "datasets", short(datasets), "is not a list of datasets with a path and a type"
        )
    entry = Fields(datasets[0], f"{fields.where}: datasets[0]")
    file = put_rows(experiment, _rows(experiment, entry, fields, folder), folder)
    axolotl_keys.DATASET.sort(entry, experiment.notes, "datasets[0].")
    for n, other in enumerate(datasets[1:], start=1):
        experiment.notes.differs.append(
            f"datasets[{n}]: {short(other)} (only the first is trained on: join them in a file)"
        )
    put_heldout(experiment, fields, "val_set_size", file)


def _rows(experiment: Experiment, entry: Fields, fields: Fields, folder: Path) -> Rows:
    differs = experiment.notes.differs
    entry.require("path")
    path, kind = str(entry.take_text("path")), entry.take("type")
    if files := entry.take_names("data_files"):
        names = [files] if isinstance(files, str) else files
        if len(names) > 1 or not (path in BUILDERS or first_file(folder / names[0])):
            differs.append(
                f"datasets[0].data_files: {short(files)} (one file is read: give data.path=... "
                "when you train)"
            )
        path = names[0]
    if (builder := entry.take_text("ds_type")) and builder not in BUILDERS:
        differs.append(f"datasets[0].ds_type: {builder} (the ending of the file's name decides)")
    format_ = _put_format(experiment, entry, kind)
    template = _chat_template(experiment, entry, fields, format_, folder)
    split, subset = entry.take_text("split"), entry.take_text("name")
    if format_ is None:
        part = " ".join(each for each in (path, subset, split) if each)
        differs.append(
            f"datasets[0]: {part} of type {short(kind)} (convert its rows to one of "
            "data.format, then give data.path=... when you train)"
        )
    return Rows("datasets[0].path", path, format_, split, subset, template)


def _put_format(experiment: Experiment, entry: Fields, kind: Any) -> str | None:
    """Our format of a dataset's type, or None. Notes what of the type is not kept."""
    if isinstance(kind, dict):
        return _user_defined(experiment, Fields(kind, f"{entry.where}.type"))
    differs = experiment.notes.differs
    base, _, variant = str(kind).replace(":", ".").partition(".")
    format_ = FORMATS.get(base)
    if format_ == "completion" and (column := entry.take_text("field")) not in (None, "text"):
        differs.append(f"datasets[0].field: {column} ({RENAME})")
        return None
    if format_ == MESSAGES and not _messages_are_usual(experiment, entry):
        return None
    if format_ == "completion":
        differs.append("datasets[0].type: completion (longer texts are cut, not split into rows)")
    if format_ and variant not in USUAL_VARIANTS.get(base, ("",)):
        differs.append(f"datasets[0].type: {short(kind)} (rows and prompts are those of {base})")
    return format_


def _user_defined(experiment: Experiment, kind: Fields) -> str | None:
    """The format of a type that names the fields itself, as FinLoRA's do."""
    differs = experiment.notes.differs
    instruction = str(kind.take_text("field_instruction", "instruction"))
    output = str(kind.take_text("field_output", "output"))
    format_ = format_of(instruction, output)
    if format_ is None:
        return None
    if (column := kind.take_text("field_input")) not in (None, "input"):
        differs.append(f"datasets[0].type.field_input: {column} ({RENAME})")
        return None
    instead = "Alpaca's prompt" if format_ == "alpaca" else "the text is the prompt and the answer"
    prompts = {key: kind.take_text(key) or usual for key, usual in PROMPTS.items()}
    for key, prompt in prompts.items():
        if prompt not in ("", "{instruction}", prompts["format"] if key != "format" else None):
            differs.append(f"datasets[0].type.{key}: {short(prompt)} ({instead})")
    axolotl_keys.PROMPT.sort(kind, experiment.notes, "datasets[0].type.")
    return format_


def _messages_are_usual(experiment: Experiment, entry: Fields) -> bool:
    """Take the names of a conversation's fields. Whether they are names that the toolkit reads."""
    mapping = entry.take_mapping("message_property_mappings") or {
        "role": entry.take_text("message_field_role") or "role",
        "content": entry.take_text("message_field_content") or "content",
    }
    column = entry.take_text("field_messages") or "messages"
    roles = entry.take_mapping("roles")
    if any(_unusual(role, sources) for role, sources in roles.items()):
        experiment.notes.differs.append(
            f"datasets[0].roles: {short(roles)} (roles have their usual names)"
        )
    if mapping not in PROPERTIES or format_of(column) != MESSAGES:
        experiment.notes.differs.append(
            f"datasets[0].field_messages: {column} with {short(mapping)} (messages or "
            "conversations with role and content, or from and value, are read)"
        )
        return False
    return True


def _unusual(role: str, sources: Any) -> bool:
    """Whether the toolkit reads one of the names ``sources`` as another role than ``role``."""
    names = sources if isinstance(sources, list) else [sources]
    return any(SHAREGPT_ROLES.get(str(name)) != role for name in names)


def _chat_template(
    experiment: Experiment, entry: Fields, fields: Fields, format_: str | None, folder: Path
) -> str | None:
    """``data.chat_template``. The template of a dataset comes before that of the file."""
    notes = experiment.notes
    own = {key: entry.take_text(key) for key in ("chat_template", "chat_template_jinja")}
    shared = {key: fields.take_text(key) for key in ("chat_template", "chat_template_jinja")}
    if entry.untaken().get("conversation") == "chatml":  # of sharegpt, in Axolotl before 0.6
        own["chat_template"] = own["chat_template"] or entry.take_text("conversation")
    chosen = own if any(own.values()) else shared
    if chosen is own:
        notes.inert += [
            f"{key} (the dataset has its own)" for key, given in shared.items() if given
        ]
    name, jinja = chosen["chat_template"], chosen["chat_template_jinja"]
    if format_ is None:
        given = {key: short(value) for key, value in chosen.items() if value}
        notes.differs += [
            f"{key}: {value} (see data.chat_template)" for key, value in given.items()
        ]
        return None
    if format_ != MESSAGES:
        notes.inert += [f"{key} (no conversations)" for key, value in chosen.items() if value]
        return None
    if jinja and name in (None, "jinja"):
        if file := first_file(folder / jinja):
            return str(file.resolve())
        notes.differs.append(
            f"chat_template_jinja: {short(jinja)} ({TOKENIZERS_OWN}: write the template to a file "
            "and give data.chat_template=FILE)"
        )
        return None
    fallback = str(name).startswith("tokenizer_default_fallback_")
    if name is None or name in TEMPLATES or fallback:
        return TEMPLATES.get(str(name))
    notes.differs.append(f"chat_template: {name}, of Axolotl ({TOKENIZERS_OWN})")
    return None
