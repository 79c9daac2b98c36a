"""Axolotl's YAML (axolotl-ai-cloud/axolotl, src/axolotl/utils/schemas), and FinLoRA's forms.

A key that is missing has Axolotl's default. The types of its datasets
(src/axolotl/prompt_strategies) are formats of rows.

FinLoRA has a YAML in its documentation of rsLoRA, which does not describe training, and entries of
``finetune_configs.json``. Its ``finetune.py`` merges an entry into its own Axolotl configuration
and trains with Axolotl; the reader does the same.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from study.config import CONTEXT
from study.data.formats import SHAREGPT_ROLES
from study.integrations.configs.experiment import Experiment, shown
from study.integrations.configs.keys import (
    ADAMW,
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
    note_init,
    put_heldout,
    put_rows,
)

OUTSIDE_BLOCKS = {"embed_tokens", "lm_head", "wte", "wpe", "embed_in", "embed_out"}
"""Usual names of embeddings and heads, which ``lora_target_linear`` does not cover."""
INERT_PLUGINS = re.compile(
    r".*\.(CutCrossEntropy|Liger|Kernels|ExpertParallel|SwanLab|LMEval|NormProbe)Plugin"
)
"""Plugins that change speed and reports only."""
USUAL_WARMUP = 0.03
"""Axolotl's default: a share of the steps (core/builders/base.py)."""
FORMATS = {
    "alpaca": ("alpaca", ("", "instruct")),
    "completion": ("completion", ("",)),
    "chat_template": (MESSAGES, ("", "default")),
    "sharegpt": (MESSAGES, ("", "load")),
    "messages": (MESSAGES, ("",)),
}
"""Our format of a type, by the part of its name before a colon or a point; and the other parts
that change neither rows nor prompts."""
BUILDERS = ("json", "csv", "parquet")
"""Values of ``ds_type``, and of ``path`` if ``data_files`` names the file."""
RENAME = "rows must have the fields of data.format: rename it"
PROPERTIES = ({"role": "from", "content": "value"}, {"role": "role", "content": "content"})
TEMPLATE_KEYS = ("chat_template", "chat_template_jinja")


class Axolotl(TrainingKeys):
    """The keys of the YAML."""

    base: str = Field(alias="base_model")
    adapter__rank: int = Field(alias="lora_r")
    adapter__alpha: float = Field(alias="lora_alpha")
    use_rslora: bool = Field(False, alias="peft_use_rslora")
    train__batch_size: int = Field(1, alias="micro_batch_size")
    train__epochs: float = Field(1.0, alias="num_epochs")
    optimizer: str = ADAMW
    schedule: str = Field("cosine", alias="lr_scheduler")
    seed: int | None = None
    data__sequence_length: int = Field(512, alias="sequence_len")
    adapter: Literal["lora", "qlora"] | None = None
    batch_size: int | None = None
    lora_target_linear: bool = False
    lora_target_modules: Targets
    lora_target_parameters: Targets
    peft: Mapped
    bf16: Literal[True, False, "true", "false", "auto", "full"] | None = None
    plugins: Names
    special_tokens: Mapped
    datasets: list[dict[str, Any]] = Field(min_length=1)
    val_set_size: float = 0.0
    data__sample_packing: bool | None = Field(None, alias="sample_packing")
    data__excess_length_strategy: str = Field("drop", alias="excess_length_strategy")
    chat_template: str = ""
    chat_template_jinja: str = ""


class Dataset(Keys):
    """An entry of ``datasets``."""

    path: str
    type: str | dict[str, Any] | None = None
    data_files: Targets
    ds_type: str = ""
    split: str = ""
    name: str = ""
    chat_template: str = ""
    chat_template_jinja: str = ""


class Prompted(Keys):
    """A type that names its fields itself, as FinLoRA's does. Prompts have Axolotl's defaults."""

    field_instruction: str = "instruction"
    field_output: str = "output"
    field_input: str = "input"
    format: str = "{instruction} {input} "
    no_input_format: str = "{instruction} "
    system_prompt: str = ""


class Turns(Keys):
    """How a dataset of conversations names their parts."""

    field_messages: str = "messages"
    message_property_mappings: Mapped
    message_field_role: str = "role"
    message_field_content: str = "content"
    roles: Mapped
    conversation: str = ""


def read(values: Mapping[str, Any], where: str, folder: Path) -> Experiment:
    """The experiment. ``folder`` holds the file ``where``.

    Raises :class:`StudyError` for a missing or wrong value, an adapter other than LoRA, bits that
    contradict each other, an init that changes the base, and training on preferences.
    """
    keys = Axolotl.read(values, where)
    rest: dict[str, Any] = keys.model_extra or {}
    if keys.adapter is None:
        keys.refuse("adapter is missing, which trains all weights: set adapter: lora or qlora")
    for key in ("rl", "reward_model", "process_reward_model"):
        if rest.get(key):
            keys.refuse(f"{key} trains on preferences, study train on targets: remove {key}")
    bits = keys.bits()
    if keys.adapter == "qlora" and bits != 4:
        given = f"load_in_{bits}bit" if bits else "no load_in_4bit"
        keys.refuse(f"adapter: qlora and {given} contradict each other: set load_in_4bit: true")
    if keys.peft.get("loftq_config"):
        keys.refuse("peft.loftq_config changes the base's weights: remove it")
    experiment, defaults = keys.experiment("Axolotl's", folder), keys.defaults()
    experiment.values["adapter.targets"] = _targets(experiment, keys)
    _put_datasets(experiment, keys, folder)
    note_init(experiment, keys, "peft_init_lora_weights")
    if dora := rest.pop("peft_use_dora", None):
        experiment.note("peft_use_dora", dora, "plain LoRA is trained")
    if keys.batch_size is not None and "train__accumulation" in keys.model_fields_set:
        experiment.ignored.append("batch_size (gradient_accumulation_steps decides)")
    elif keys.batch_size is not None:
        parts = max(1, keys.batch_size // max(1, keys.train__batch_size))
        experiment.values["train.accumulation"] = parts
    if "train.warmup" not in experiment.values:
        experiment.values["train.warmup"] = USUAL_WARMUP
        defaults.append(f"warmup_ratio {USUAL_WARMUP} (at most 100 steps)")
    elif experiment.values["train.warmup"] == 1:
        experiment.values["train.warmup"] = 2  # Axolotl's builder does it: step 0 would be at 0
    bf16: Any = True if rest.get("bfloat16") else keys.bf16
    if bf16 is None and not (rest.get("fp16") or rest.get("float16")):
        bf16 = "auto"
        defaults.append("bf16 auto")
    experiment.values["precision"] = "float32" if bf16 in (None, False, "false") else "bf16"
    for plugin in keys.plugins:
        if INERT_PLUGINS.fullmatch(plugin):
            experiment.ignored.append(f"plugins: {plugin}")
        else:
            experiment.note("plugins", plugin, "it is not run")
    tokens = {key: token for key, token in keys.special_tokens.items() if key != "pad_token"}
    if any(tokens.values()):  # padding is masked, so its token changes nothing
        why = "the base's own tokenizer is used"
        experiment.note("special_tokens", tokens, why, detail=True)
    if keys.seed is None:
        experiment.defaults.append("seed: Axolotl draws adapters without one (seed=0)")
    if defaults:
        experiment.defaults.append(f"Axolotl's defaults: {', '.join(defaults)}")
    experiment.note_rest(rest)
    return experiment


def _targets(experiment: Experiment, keys: Axolotl) -> Any:
    modules = all_targets(keys.lora_target_modules, keys.lora_target_parameters)
    if keys.lora_target_linear:
        beyond = {modules} if isinstance(modules, str) else set(modules or ())
        if outside := sorted(beyond & OUTSIDE_BLOCKS):
            why = "adapters are on the linear layers of the blocks"
            experiment.note("lora_target_modules", outside, why)
        return "all-linear"
    if not modules:
        keys.refuse(
            "lora_target_modules is missing and lora_target_linear is not true: set one of them"
        )
    return modules


def _put_datasets(experiment: Experiment, keys: Axolotl, folder: Path) -> None:
    """Set the data, and the examples to hold out. ``folder`` holds the file."""
    found = [_data_set(experiment, keys, n, folder) for n in range(len(keys.datasets))]
    others = found[0][1]
    for rows, of_rows in found[1:]:
        if of_rows != others:
            why = "the prompt or the template of the first data set is used"
            experiment.note(rows.key, rows.path, why)
    file = put_rows(experiment, [rows for rows, _ in found], folder, **others)
    put_heldout(experiment, "val_set_size", keys.val_set_size, file)


def _data_set(
    experiment: Experiment, keys: Axolotl, n: int, folder: Path
) -> tuple[Rows, dict[str, Any]]:
    """An entry of ``datasets``, and its prompt or its chat template."""
    where = f"datasets[{n}]"
    entry = Dataset.read(keys.datasets[n], f"{keys._where}: {where}")
    path = entry.path
    if entry.data_files:
        names = [entry.data_files] if isinstance(entry.data_files, str) else entry.data_files
        if len(names) > 1 or not (path in BUILDERS or first_file(folder / names[0])):
            experiment.note(f"{where}.data_files", names, f"one file is read: {GIVE_PATH}")
        path = names[0]
    if entry.ds_type not in ("", *BUILDERS):
        why = "the ending of the file's name decides"
        experiment.note(f"{where}.ds_type", entry.ds_type, why)
    format_, prompt, rest = _format(experiment, entry, where)
    template = _chat_template(experiment, entry, keys, format_, folder)
    if format_ is None:
        part = " ".join(each for each in (path, entry.name, entry.split) if each)
        why = f"convert its rows to one of data.format, then {GIVE_PATH}"
        experiment.note(where, f"{part} of type {shown(entry.type)}", why)
    experiment.note_rest(rest, f"{where}.")
    rows = Rows(f"{where}.path", path, format_, entry.split, entry.name)
    return rows, {"chat_template": template, "prompt": prompt}


def _format(
    experiment: Experiment, entry: Dataset, where: str
) -> tuple[str | None, str | None, dict[str, Any]]:
    """Our format of a dataset's type, or None; ``data.prompt``; and the keys that are left.

    Notes what of the type is not kept.
    """
    rest: dict[str, Any] = entry.model_extra or {}
    if isinstance(entry.type, dict):
        kind = Prompted.read(entry.type, f"{entry._where}.type")
        return *_prompted(experiment, kind, f"{where}.type"), rest
    base, _, variant = str(entry.type).replace(":", ".").partition(".")
    format_, usual = FORMATS.get(base, (None, ()))
    if format_ == "completion":
        if (column := rest.pop("field", "text")) != "text":
            experiment.note(f"{where}.field", column, RENAME)
            return None, None, rest
        why = "longer texts are cut, not split into rows"
        experiment.note(f"{where}.type", base, why)
    if format_ == MESSAGES:
        turns = Turns.read(rest, entry._where)
        rest = turns.model_extra or {}
        if turns.conversation == "chatml":  # of sharegpt, in Axolotl before 0.6
            entry.chat_template = entry.chat_template or "chatml"
        if not _is_usual(experiment, turns, where):
            return None, None, rest
    if format_ and variant not in usual:
        experiment.note(f"{where}.type", entry.type, f"rows and prompts are those of {base}")
    return format_, None, rest


def _prompted(experiment: Experiment, kind: Prompted, where: str) -> tuple[str | None, str | None]:
    """Our format of rows whose prompt is given, and ``data.prompt``."""
    format_ = format_of(kind.field_instruction, kind.field_output)
    if format_ and kind.field_input != "input":
        experiment.note(f"{where}.field_input", kind.field_input, RENAME)
        return None, None
    if format_ is None:
        return None, None
    prompt = kind.no_input_format or kind.format
    if format_ != "alpaca" and "{input}" not in prompt and not kind.system_prompt:
        experiment.note_rest(kind.model_extra, f"{where}.")
        return format_, prompt.replace("{instruction}", CONTEXT)  # rows without a field input
    instead = "Alpaca's prompt" if format_ == "alpaca" else "the text is the prompt and the answer"
    for key in ("format", "no_input_format", "system_prompt"):
        prompt = getattr(kind, key) or Prompted.model_fields[key].default
        if prompt not in ("", "{instruction}") and (key == "format" or prompt != kind.format):
            experiment.note(f"{where}.{key}", prompt, instead)
    experiment.note_rest(kind.model_extra, f"{where}.")
    return format_, None


def _is_usual(experiment: Experiment, turns: Turns, where: str) -> bool:
    """Whether the toolkit reads the names of a conversation's fields."""
    parts = turns.message_property_mappings or {
        "role": turns.message_field_role,
        "content": turns.message_field_content,
    }
    for role, given in turns.roles.items():
        names = given if isinstance(given, list) else [given]
        if any(SHAREGPT_ROLES.get(str(name)) != role for name in names):
            experiment.note(f"{where}.roles", turns.roles, "roles have their usual names")
            break
    if parts in PROPERTIES and format_of(turns.field_messages) == MESSAGES:
        return True
    experiment.note(
        f"{where}.field_messages",
        f"{turns.field_messages} with {shown(parts)}",
        "messages or conversations with role and content, or from and value, are read",
    )
    return False


def _chat_template(
    experiment: Experiment, entry: Dataset, keys: Axolotl, format_: str | None, folder: Path
) -> str | None:
    """``data.chat_template``. The template of a dataset comes before that of the file."""
    own, shared = (
        {key: text for key in TEMPLATE_KEYS if (text := getattr(each, key))}
        for each in (entry, keys)
    )
    given = own or shared
    name, jinja = (given.get(key, "") for key in TEMPLATE_KEYS)
    if format_ is None:
        for key, text in given.items():
            experiment.note(key, text, "see data.chat_template")
    elif format_ != MESSAGES:
        experiment.ignored += [f"{key} (no conversations)" for key in given]
    elif jinja and name in ("", "jinja"):
        if file := first_file(folder / jinja):
            return str(file.resolve())
        why = f"{TOKENIZERS_OWN}: write the template to a file and give data.chat_template=FILE"
        experiment.note("chat_template_jinja", jinja, why)
    elif name == "chatml":
        return name
    elif name and not name.startswith("tokenizer_default"):
        # Axolotl's templates are copies of those that the models of this name have.
        is_bases = _letters(name) in _letters(keys.base)
        experiment.note("chat_template", f"{name}, of Axolotl", TOKENIZERS_OWN, detail=is_bases)
    return None


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


class Finlora(AdapterKeys):
    """The keys of FinLoRA's YAML."""

    base: str = Field(alias="model_name")
    adapter__rank: int = Field(alias="lora_rank")
    adapter__alpha: float = Field(alias="lora_alpha")
    use_rslora: bool = Field(False, alias="use_rsLoRA")
    dataset: str


FINETUNE = {
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


class FinloraEntry(Keys):
    """The keys of an entry. Those from ``base_model`` on have the same meaning in Axolotl."""

    dataset_path: str
    batch_size: int = 2
    base_model: Any
    lora_r: Any
    quant_bits: Any = None
    load_in_8bit: Any = None
    load_in_4bit: Any = None
    lora_alpha: Any = None
    learning_rate: Any = None
    num_epochs: Any = None
    gradient_accumulation_steps: Any = None
    peft_use_rslora: Any = None
    peft_use_dora: Any = None


def read_finlora(values: Mapping[str, Any], where: str, folder: Path) -> Experiment:
    """The experiment of FinLoRA's YAML. Raises :class:`StudyError` as :func:`read` does."""
    keys = Finlora.read(values, where)
    experiment = keys.experiment("FinLoRA's YAML", folder)
    put_rows(experiment, [Rows("dataset", keys.dataset, "context_target")], folder)
    experiment.defaults.append(
        "targets, optimizer, learning rate and steps: defaults of study train"
    )
    experiment.note_rest(keys.model_extra)
    return experiment


def read_finlora_entry(values: Mapping[str, Any], where: str, folder: Path) -> Experiment:
    """The experiment of an entry. Raises :class:`StudyError` as :func:`read` does."""
    entry = FinloraEntry.read(values, where)
    own = entry.model_dump(include=entry.model_fields_set & FinloraEntry.model_fields.keys())
    if "batch_size" in own:
        own["micro_batch_size"] = own.pop("batch_size")
    own["datasets"] = [{"path": own.pop("dataset_path"), "type": PROMPT}]
    is_4bit = entry.quant_bits == 4 or bool(entry.load_in_4bit)
    own["optimizer"] = "paged_adamw_8bit" if is_4bit else "adamw_bnb_8bit"
    experiment = read({"adapter": "lora"} | FINETUNE | own, where, folder)
    experiment.origin = f"FinLoRA's entry {where}"
    silent = (f"{key} {shown(value)}" for key, value in FINETUNE.items() if key not in own)
    experiment.defaults.insert(0, f"FinLoRA's finetune.py sets {', '.join(silent)}")
    experiment.ignored += [
        f"{shown(key)} (finetune.py does not read it)" for key in entry.model_extra or ()
    ]
    return experiment
