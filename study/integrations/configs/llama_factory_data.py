"""LLaMA-Factory's ``dataset``: names that its ``dataset_info.json`` explains (data/parser.py)."""

from pathlib import Path

from study.data.formats import ROLES, SHAREGPT_ROLES
from study.errors import StudyError, unknown
from study.integrations.configs import llama_factory_keys
from study.integrations.configs.documents import load
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
        experiment.notes.inert.append("template")
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
            f"{info}: {name}={short(entries[name])} is not a mapping of keys to values"
        )
    entry = Fields(entries[name], f"{name} in {INFO}")
    format_ = _format(experiment, entry, name, stage)
    path, hub = entry.take_text("file_name"), entry.take_text("hf_hub_url")
    split, subset = entry.take_text("split"), entry.take_text("subset")
    llama_factory_keys.DATASET.sort(entry, experiment.notes, f"{name}.")
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
    llama_factory_keys.COLUMNS.sort(columns, experiment.notes, f"{name}.columns.")
    return format_


def _tags_are_usual(tags: dict[str, str]) -> bool:
    """Whether the toolkit reads conversations whose parts and roles have these names."""
    named = {**TAGS, **tags}
    roles = PARTS.get((named.pop("role"), named.pop("content")), {})
    return all(roles.get(tag, "") == OUR_ROLES.get(key) for key, tag in named.items())
