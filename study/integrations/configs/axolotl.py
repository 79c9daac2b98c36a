"""Axolotl's YAML and FinLoRA's two forms (its YAML, and an entry of ``finetune_configs.json``,
which ``finetune.py`` merges into a configuration of Axolotl), with their data.
"""

import os.path
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from study.config import CONTEXT
from study.config.values import LARGEST
from study.data import files
from study.integrations.configs.tools import GIVE_PATH, Experiment, Reading, Tool, note_init, shown
from study.vocabulary.sources import FORMATS

MESSAGES = "messages"
_FILE = yaml.safe_load(Path(__file__).with_name("axolotl.yaml").read_text())
TYPES, CHATS, FIELDS = _FILE["types"], _FILE["chats"], _FILE["fields"]
BUILDERS = ("json", "csv", "parquet")
"""Values of ``path`` if ``data_files`` names the file."""
TEMPLATES = ("chat_template", "chat_template_jinja")
STAND_INS = {"xbrl_extract_train.jsonl": "xbrl_extract"}
"""Generated data that is used if a file of FinLoRA's is missing."""


def _axolotl(reading: Reading) -> None:
    found, rest = reading.found, reading.rest
    if isinstance(peft := rest.get("peft"), dict) and peft.get("backend") == "bnb":
        bits = {"nf4": 4, "int8": 8}.get(str(peft.get("weight_dtype")))
        found["model.quant_bits"] = bits or found.get("model.quant_bits")
    if found["adapter"] == "qlora" and found.get("model.quant_bits") != 4:
        reading.refuse("adapter: qlora and no load_in_4bit contradict: set load_in_4bit: true")
    if isinstance(peft, dict) and peft.get("loftq_config"):
        reading.cannot_train("peft.loftq_config changes the base's weights", "remove it")
    if found.get("all_linear"):
        found["adapter.targets"] = "all-linear"
    elif not (found.get("adapter.targets") or found.get("experts")):
        reading.refuse("lora_target_modules is missing: set it, or lora_target_linear: true")
    note_init(reading, "peft_init_lora_weights")
    if rest.get("batch_size") and reading.unset.pop("gradient_accumulation_steps", None):
        batch = reading.take("batch_size", "whole")
        found["train.accumulation"] = max(1, batch // max(1, found["train.batch_size"]))
    if found["train.warmup"] == 1:
        found["train.warmup"] = 2  # Axolotl's builder does it: step 0 would be at 0
    _put_datasets(reading)


AXOLOTL = Tool("Axolotl", _axolotl)


def _put_datasets(reading: Reading) -> None:
    """Set the data, and the examples to hold out: Axolotl gives a number or a share of the rows."""
    if "datasets" not in reading.rest:
        reading.experiment.groups["data"] = "file"
        reading.experiment.missing.append(f"datasets: {GIVE_PATH}")
        return
    entries = reading.take("datasets", "rows")
    template = {key: reading.take(key, "text", "") for key in TEMPLATES}
    found = [_data_set(reading, f"datasets[{n}]", each, template) for n, each in enumerate(entries)]
    file = put_rows(reading, found)
    asked = reading.take("val_set_size", "real", 0)
    if 0 < asked < 1 and file is not None:
        asked = max(1, round(asked * sum(1 for _ in files.read(str(file)))))
    if asked >= 1:
        reading.experiment.values["data.heldout"] = min(round(asked), LARGEST)
    else:
        of = "of rows that are not here" if asked else "of the rows"
        why = f"{of}: data.heldout keeps its default, at most a tenth"
        reading.experiment.note("val_set_size", f"{asked:g}", why, detail=True)


def put_rows(reading: Reading, data_sets: Sequence[tuple[str, str, dict[str, Any]]]) -> Path | None:
    """Set the data: those of ``data_sets`` that are like the first. Returns the first file.
    ``data_sets``: a name in notes, a path and the other keys of ``data`` of each."""
    experiment, first = reading.experiment, data_sets[0][2]
    experiment.groups["data"] = "file"
    paths, used = list[str](), list[Path]()
    for key, path, own in data_sets:
        found = first_file(reading.folder / path, Path(path))
        is_hub = files.is_hub_name(path) and not files.is_file_name(path)
        part = " ".join(filter(None, (own.get("subset"), own.get("split"))))
        if own != first:
            why = "its format, part, prompt or template differs from that of the first one, which "
            experiment.note(key, path, f"{why}is trained on")
        elif own["format"] is None:
            continue
        elif found is not None:
            used.append(found)
            paths.append(str(found.resolve()))
            if part not in ("", "train"):
                experiment.note(key, f"{part} of {path}", "the whole file is read")
        elif stand_in := STAND_INS.get(Path(path).name):
            experiment.groups["data"] = stand_in
            instead = f"data={stand_in} is used instead, generated questions of the same form"
            have = f"if you have the file: data=file data.path={Path(path).name}"
            experiment.differs.append(f"{key}: {path} not found: {instead}; {have}")
            return None
        elif is_hub and not (reading.folder / path).is_dir():
            paths.append(path)
        else:
            experiment.missing.append(f"{key}: {path} is no file here: {GIVE_PATH}")
    values = first | {"path": paths[0] if len(paths) == 1 else paths}
    if used:
        values |= {"split": None, "subset": None}
    experiment.values |= {f"data.{name}": value for name, value in values.items() if value}
    return used[0] if used else None


def _data_set(
    reading: Reading, where: str, values: Mapping[str, Any], template: Mapping[str, str]
) -> tuple[str, str, dict[str, Any]]:
    experiment, entry = reading.experiment, reading.inside(where, values)
    path, names = entry.take("path", "text"), entry.take("data_files", "names", [])
    if names:
        names = [names] if isinstance(names, str) else names
        if len(names) > 1 or not (path in BUILDERS or first_file(entry.folder / names[0])):
            experiment.note(f"{where}.data_files", names, f"one file is read: {GIVE_PATH}")
        path = names[0]
    split, subset = entry.take("split", "text", ""), entry.take("name", "text", "")
    kind, prompt = entry.rest.pop("type", None), None
    if isinstance(kind, dict):
        format_, prompt = _prompted(entry.inside("type", kind), f"{where}.type")
    else:
        format_ = _format(entry, str(kind), where)
    chat: Mapping[str, str] = {key: entry.take(key, "text", "") for key in TEMPLATES}
    chat = chat if any(chat.values()) else template
    chat_template = _chat_template(reading, *chat.values()) if format_ == MESSAGES else None
    if format_ is None:
        part = " ".join(filter(None, (path, subset, split)))
        why = f"convert its rows to one of data.format, then {GIVE_PATH}"
        experiment.note(where, f"{part} of type {shown(kind)}", why)
    experiment.note_rest(entry.rest, f"{where}.")
    ours = {"format": format_, "split": split, "subset": subset}
    return f"{where}.path", path, ours | {"prompt": prompt, "chat_template": chat_template}


def _format(entry: Reading, kind: str, where: str) -> str | None:
    """Our format of the type ``kind``, or None. Notes the parts of the type that are lost."""
    experiment, rest = entry.experiment, entry.rest
    base, _, variant = kind.replace(":", ".").partition(".")
    format_, usual = TYPES.get(base, (None, ()))
    if format_ == "completion":
        if (column := rest.pop("field", "text")) != "text":
            experiment.note(f"{where}.field", column, "rows must have a field text: rename it")
            return None
        experiment.note(f"{where}.type", base, "longer texts are cut, not split into rows")
    if format_ == MESSAGES:
        named = {key: rest.pop(key) for key in CHATS if key in rest}
        if names := {key: name for key, name in named.items() if name not in CHATS[key]}:
            why = "messages or conversations with role and content, or from and value, are read"
            experiment.note(where, names, why)
            return None
    if format_ and variant not in usual:
        experiment.note(f"{where}.type", kind, f"rows and prompts are those of {base}")
    return format_


def _prompted(kind: Reading, where: str) -> tuple[str | None, str | None]:
    """Our format of a type that names its fields itself, as FinLoRA's does, and ``data.prompt``."""
    experiment = kind.experiment
    given = {key: kind.take(key, "text", usual) for key, usual in FIELDS.items()}
    question, answer, more = (given.pop(key) for key in list(given)[:3])
    format_ = next((name for name, row in FORMATS.items() if (question, answer) in row.needs), None)
    if format_ is None or more != "input":
        return None, None
    experiment.note_rest(kind.rest, f"{where}.")
    prompt = given["no_input_format"] or given["format"]
    if format_ != "alpaca" and "{input}" not in prompt and not given["system_prompt"]:
        return format_, prompt.replace("{instruction}", CONTEXT)  # rows without a field input
    if set(given.values()) - {"", "{instruction}"}:
        why = "Alpaca's prompt" if format_ == "alpaca" else "the text is the prompt and the answer"
        experiment.note(where, given, why)
    return format_, None


def _chat_template(reading: Reading, name: str, jinja: str) -> str | None:
    file = first_file(reading.folder / jinja) if jinja and name in ("", "jinja") else None
    if file or name == "chatml":
        return str(file.resolve()) if file else name
    own = "the tokenizer's own chat template is used"
    if jinja:
        why = f"{own}: write the template to a file and give data.chat_template=FILE"
        reading.experiment.note("chat_template_jinja", jinja, why)
    elif name and not name.startswith("tokenizer_default"):
        # Axolotl's templates are copies of those that the models of this name have.
        reading.experiment.note("chat_template", f"{name}, of Axolotl", own, detail=True)
    return None


def first_file(*paths: Path) -> Path | None:
    return next((path for path in paths if os.path.isfile(path)), None)


def _finlora(reading: Reading) -> None:
    put_rows(reading, [("dataset", reading.take("dataset", "text"), {"format": "context_target"})])
    silent = "targets, optimizer, learning rate and steps: defaults of study train"
    reading.experiment.defaults.append(silent)


FINLORA = Tool("FinLoRA", _finlora)
FINETUNE = yaml.safe_load(Path(__file__).with_name("finlora.yaml").read_text())
ENTRY = (
    "base_model lora_r quant_bits load_in_8bit load_in_4bit lora_alpha learning_rate num_epochs "
    "gradient_accumulation_steps peft_use_rslora peft_use_dora dataset_path batch_size"
)
"""The keys of an entry that ``finetune.py`` reads. All but the last two are also Axolotl's."""


def read_finlora_entry(
    values: Mapping[str, Any],
    where: str,
    folder: Path,
    base: str | None = None,
    trains: bool = True,
) -> Experiment:
    """An entry of FinLoRA's ``finetune_configs.json``; parameters as :meth:`Tool.read`."""
    own = {key: values[key] for key in ENTRY.split() if values.get(key) is not None}
    own["datasets"] = [{"path": own.pop("dataset_path"), **FINETUNE["datasets"][0]}]
    if "batch_size" in own:
        own["micro_batch_size"] = own.pop("batch_size")
    is_4bit = own.get("quant_bits") == 4 or own.get("load_in_4bit")
    own["optimizer"] = "paged_adamw_8bit" if is_4bit else "adamw_bnb_8bit"
    experiment = AXOLOTL.read({"adapter": "lora"} | FINETUNE | own, where, folder, base, trains)
    experiment.origin = f"FinLoRA's {where}"
    silent = (f"{key} {shown(value)}" for key, value in FINETUNE.items() if key not in own)
    experiment.defaults.insert(0, f"FinLoRA's finetune.py sets {', '.join(silent)}")
    unread = [key for key in values if key not in ENTRY.split() and values[key] is not None]
    experiment.ignored += [f"{shown(key)} (finetune.py does not read it)" for key in unread]
    return experiment
