"""Axolotl's YAML (axolotl-ai-cloud/axolotl, src/axolotl/utils/schemas), and FinLoRA's forms.

A key that is missing has Axolotl's default. The types of its datasets
(src/axolotl/prompt_strategies) are formats of rows.

FinLoRA has two forms: a YAML in its documentation of rsLoRA, which does not describe training, and
entries of ``finetune_configs.json``. Its ``finetune.py`` merges an entry into its own Axolotl
configuration and trains with Axolotl; the reader does the same.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from study.config import CONTEXT
from study.errors import StudyError
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
    unusual,
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
"""Values of ``path`` if ``data_files`` names the file."""
RENAME = "rows must have the fields of data.format: rename it"
CHATS: dict[str, Sequence[Any]] = {
    "field_messages": ("messages", "conversations"),
    "message_field_role": ("role", "from"),
    "message_field_content": ("content", "value"),
    "message_property_mappings": (
        {"role": "from", "content": "value"},
        {"role": "role", "content": "content"},
    ),
}
"""How a dataset of conversations may name their parts."""


class Axolotl(TrainingKeys):
    tool = "Axolotl"
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
    adapter: Literal["lora", "qlora"]
    batch_size: int | None = None
    lora_target_linear: bool = False
    lora_target_modules: Targets
    lora_target_parameters: Targets
    peft: Mapped
    bf16: Literal[True, False, "true", "false", "auto", "full"] | None = None
    plugins: Names
    datasets: list[dict[str, Any]] = Field(min_length=1)
    val_set_size: float = 0.0
    data__sample_packing: bool | None = Field(None, alias="sample_packing")
    data__excess_length_strategy: str = Field("drop", alias="excess_length_strategy")
    chat_template: str = ""
    chat_template_jinja: str = ""


class Dataset(Keys):
    path: str
    type: str | dict[str, Any] | None = None
    data_files: Targets
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


def read(values: Mapping[str, Any], where: str, folder: Path) -> Experiment:
    """The experiment. ``folder`` holds the file ``where``.

    Raises :class:`StudyError` for a missing or wrong value, an adapter other than LoRA, bits that
    contradict each other, an init that changes the base, and training on preferences.
    """
    if not values.get("adapter"):
        raise StudyError(
            f"{where}: adapter is missing, which trains all weights: set adapter: lora or qlora"
        )
    keys = Axolotl.read(values, where)
    rest, bits = keys.rest, keys.bits()
    for key in ("rl", "reward_model", "process_reward_model"):
        if rest.get(key):
            keys.refuse(f"{key} trains on preferences, study train on targets: remove {key}")
    if keys.adapter == "qlora" and bits != 4:
        given = f"load_in_{bits}bit" if bits else "no load_in_4bit"
        keys.refuse(f"adapter: qlora and {given} contradict each other: set load_in_4bit: true")
    if keys.peft.get("loftq_config"):
        keys.refuse("peft.loftq_config changes the base's weights: remove it")
    experiment, defaults = keys.experiment(folder), list[str]()
    ours = experiment.values
    ours["adapter.targets"] = _targets(experiment, keys)
    _put_datasets(experiment, keys, folder)
    note_init(experiment, keys, "peft_init_lora_weights")
    if keys.batch_size is not None and "train__accumulation" in keys.model_fields_set:
        experiment.ignored.append("batch_size (gradient_accumulation_steps decides)")
    elif keys.batch_size is not None:
        ours["train.accumulation"] = max(1, keys.batch_size // max(1, keys.train__batch_size))
    if "train.warmup" not in ours:
        ours["train.warmup"] = USUAL_WARMUP
        defaults.append(f"warmup_ratio {USUAL_WARMUP} (at most 100 steps)")
    elif ours["train.warmup"] == 1:
        ours["train.warmup"] = 2  # Axolotl's builder does it: step 0 would be at 0
    bf16: Any = True if rest.get("bfloat16") else keys.bf16
    if bf16 is None and not (rest.get("fp16") or rest.get("float16")):
        bf16 = "auto"
        defaults.append("bf16 auto")
    ours["precision"] = "float32" if bf16 in (None, False, "false") else "bf16"
    for plugin in keys.plugins:
        if INERT_PLUGINS.fullmatch(plugin):
            experiment.ignored.append(f"plugins: {plugin}")
        else:
            experiment.note("plugins", plugin, "it is not run")
    if isinstance(tokens := rest.get("special_tokens"), dict):  # padding is masked
        rest["special_tokens"] = {key: tokens[key] for key in tokens if key != "pad_token"}
    if keys.seed is None:
        experiment.defaults.append("seed: Axolotl draws adapters without one (seed=0)")
    keys.finish(experiment, *defaults)
    return experiment


def _targets(experiment: Experiment, keys: Axolotl) -> Any:
    modules = all_targets(keys.lora_target_modules, keys.lora_target_parameters)
    if not keys.lora_target_linear:
        return modules or keys.refuse(
            "lora_target_modules is missing and lora_target_linear is not true: set one of them"
        )
    beyond = {modules} if isinstance(modules, str) else set(modules or ())
    if outside := sorted(beyond & OUTSIDE_BLOCKS):
        why = "adapters are on the linear layers of the blocks"
        experiment.note("lora_target_modules", outside, why)
    return "all-linear"


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
    if isinstance(entry.type, dict):
        kind = Prompted.read(entry.type, f"{entry._where}.type")
        format_, prompt = _prompted(experiment, kind, f"{where}.type")
    else:
        format_, prompt = _format(experiment, entry, entry.type, where), None
    template = _chat_template(experiment, entry, keys, format_, folder)
    if format_ is None:
        part = " ".join(each for each in (path, entry.name, entry.split) if each)
        why = f"convert its rows to one of data.format, then {GIVE_PATH}"
        experiment.note(where, f"{part} of type {shown(entry.type)}", why)
    experiment.note_rest(entry.rest, f"{where}.")
    rows = Rows(f"{where}.path", path, format_, entry.split, entry.name)
    return rows, {"chat_template": template, "prompt": prompt}


def _format(experiment: Experiment, entry: Dataset, kind: str | None, where: str) -> str | None:
    """Our format of the type ``kind``, or None. Notes the parts of the type that are lost."""
    base, _, variant = str(kind).replace(":", ".").partition(".")
    format_, usual = FORMATS.get(base, (None, ()))
    if format_ == "completion":
        if (column := entry.rest.pop("field", "text")) != "text":
            experiment.note(f"{where}.field", column, RENAME)
            return None
        experiment.note(f"{where}.type", base, "longer texts are cut, not split into rows")
    if format_ == MESSAGES:
        if entry.rest.pop("conversation", "") == "chatml":  # of sharegpt, in Axolotl before 0.6
            entry.chat_template = entry.chat_template or "chatml"
        if names := unusual(entry.rest, CHATS):
            why = "messages or conversations with role and content, or from and value, are read"
            experiment.note(where, names, why)
            return None
    if format_ and variant not in usual:
        experiment.note(f"{where}.type", kind, f"rows and prompts are those of {base}")
    return format_


def _prompted(experiment: Experiment, kind: Prompted, where: str) -> tuple[str | None, str | None]:
    """Our format of rows whose prompt is given, and ``data.prompt``."""
    format_ = format_of(kind.field_instruction, kind.field_output)
    if format_ and kind.field_input != "input":
        experiment.note(f"{where}.field_input", kind.field_input, RENAME)
        format_ = None
    if format_ is None:
        return None, None
    experiment.note_rest(kind.rest, f"{where}.")
    prompt = kind.no_input_format or kind.format
    if format_ != "alpaca" and "{input}" not in prompt and not kind.system_prompt:
        return format_, prompt.replace("{instruction}", CONTEXT)  # rows without a field input
    prompts = kind.model_dump(include={"format", "no_input_format", "system_prompt"})
    if set(prompts.values()) - {"", "{instruction}"}:
        is_alpaca = format_ == "alpaca"
        why = "Alpaca's prompt" if is_alpaca else "the text is the prompt and the answer"
        experiment.note(where, prompts, why)
    return format_, None


def _chat_template(
    experiment: Experiment, entry: Dataset, keys: Axolotl, format_: str | None, folder: Path
) -> str | None:
    """``data.chat_template``. The template of a dataset comes before that of the file."""
    of = entry if entry.chat_template or entry.chat_template_jinja else keys
    name, jinja = of.chat_template, of.chat_template_jinja
    if format_ != MESSAGES:
        given = {"chat_template": name, "chat_template_jinja": jinja}
        experiment.ignored += [f"{key} (no conversations)" for key, text in given.items() if text]
    elif jinja and name in ("", "jinja"):
        if file := first_file(folder / jinja):
            return str(file.resolve())
        why = f"{TOKENIZERS_OWN}: write the template to a file and give data.chat_template=FILE"
        experiment.note("chat_template_jinja", jinja, why)
    elif name == "chatml":
        return name
    elif name and not name.startswith("tokenizer_default"):
        # Axolotl's templates are copies of those that the models of this name have.
        ours, theirs = (re.sub(r"[\W_]", "", text.lower()) for text in (name, keys.base))
        experiment.note(
            "chat_template", f"{name}, of Axolotl", TOKENIZERS_OWN, detail=ours in theirs
        )
    return None


class Finlora(AdapterKeys):
    tool = "FinLoRA"
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
ENTRY = (
    "base_model lora_r quant_bits load_in_8bit load_in_4bit lora_alpha learning_rate num_epochs "
    "gradient_accumulation_steps peft_use_rslora peft_use_dora dataset_path batch_size"
)
"""The keys of an entry that ``finetune.py`` reads. All but the last two are also Axolotl's."""
PROMPT = {
    "field_instruction": "context",
    "field_output": "target",
    "format": "[INST] {instruction} [/INST]",
    "no_input_format": "[INST] {instruction} [/INST]",
}


def read_finlora(values: Mapping[str, Any], where: str, folder: Path) -> Experiment:
    """The experiment of FinLoRA's YAML. Raises :class:`StudyError` as :func:`read` does."""
    keys = Finlora.read(values, where)
    experiment = keys.experiment(folder)
    put_rows(experiment, [Rows("dataset", keys.dataset, "context_target")], folder)
    experiment.defaults.append(
        "targets, optimizer, learning rate and steps: defaults of study train"
    )
    experiment.note_rest(keys.rest)
    return experiment


def read_finlora_entry(values: Mapping[str, Any], where: str, folder: Path) -> Experiment:
    """The experiment of an entry. Raises :class:`StudyError` as :func:`read` does."""
    names = ENTRY.split()
    own = {key: values[key] for key in names if values.get(key) is not None}
    own["datasets"] = [{"path": own.pop("dataset_path"), "type": PROMPT}]
    if "batch_size" in own:
        own["micro_batch_size"] = own.pop("batch_size")
    is_4bit = own.get("quant_bits") == 4 or own.get("load_in_4bit")
    own["optimizer"] = "paged_adamw_8bit" if is_4bit else "adamw_bnb_8bit"
    experiment = read({"adapter": "lora"} | FINETUNE | own, where, folder)
    experiment.origin = f"FinLoRA's {where}"
    silent = (f"{key} {shown(value)}" for key, value in FINETUNE.items() if key not in own)
    experiment.defaults.insert(0, f"FinLoRA's finetune.py sets {', '.join(silent)}")
    unread = [shown(key) for key in values if key not in names and values[key] is not None]
    experiment.ignored += [f"{key} (finetune.py does not read it)" for key in unread]
    return experiment
