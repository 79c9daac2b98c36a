"""Axolotl's YAML (axolotl-ai-cloud/axolotl, src/axolotl/utils/schemas).

A key that is missing has Axolotl's default. The types of its datasets
(src/axolotl/prompt_strategies) are formats of rows.
"""

from pathlib import Path
from typing import Any

from study.data.formats import SHAREGPT_ROLES
from study.errors import StudyError, unknown
from study.integrations.configs.experiment import Experiment, note_rest, shown
from study.integrations.configs.fields import Fields
from study.integrations.configs.settings import (
    MESSAGES,
    TOKENIZERS_OWN,
    WITHOUT_WARMUP,
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
    refuse_other_base,
    scaling_rule,
    take_bits,
    take_targets,
)

ADAPTERS = ("lora", "qlora")
TARGETS = "lora_target_modules"
OUTSIDE_BLOCKS = {"embed_tokens", "lm_head", "wte", "wpe", "embed_in", "embed_out"}
"""Usual names of embeddings and heads, which ``lora_target_linear`` does not cover."""
PREFERENCES = ("rl", "reward_model", "process_reward_model")
INERT_PLUGINS = (
    "CutCrossEntropyPlugin",
    "LigerPlugin",
    "KernelsPlugin",
    "ExpertParallelPlugin",
    "SwanLabPlugin",
    "LMEvalPlugin",
    "NormProbePlugin",
)
"""Plugins, by class, that change speed and reports only."""
USUAL_WARMUP, MOST_WARMUP = 0.03, 100
"""Axolotl's default: a share of the steps, and its limit (core/builders/base.py)."""
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


def read(fields: Fields, folder: Path) -> Experiment:
    """The experiment. ``folder`` holds the file.

    Raises :class:`StudyError` for a missing or wrong value, an adapter other than LoRA, bits that
    contradict each other, an init that changes the base, and training on preferences.
    """
    bits = _check_method(fields)
    fields.require("base_model", "lora_r", "lora_alpha", "datasets", "learning_rate")
    experiment = Experiment(f"Axolotl's {fields.where}")
    put_base(experiment, str(fields.take_text("base_model")), bits, folder)
    put_datasets(experiment, fields, folder)
    experiment.values |= {
        "adapter.rank": fields.take_whole("lora_r"),
        "adapter.alpha": fields.take_number("lora_alpha"),
        "adapter.scaling": scaling_rule(fields.take_flag("peft_use_rslora")),
        "adapter.targets": _targets(experiment, fields),
        "adapter.dropout": fields.take_number("lora_dropout", 0.0),
    }
    _put_init(experiment, fields)
    put_optimizer(experiment, fields, "optimizer", None)
    _put_batch(experiment, fields)
    put_length(experiment, fields, "num_epochs", 1.0)
    _put_schedule(experiment, fields)
    _put_precision(experiment, fields)
    if "seed" in fields:
        experiment.values["seed"] = fields.take_whole("seed")
    _note_plugins(experiment, fields)
    _note_special_tokens(experiment, fields)
    _note_defaults(experiment, fields)
    note_rest(fields, experiment.notes)
    return experiment


def _check_method(fields: Fields) -> int | None:
    """The bits of the base. Raises for training that is not LoRA on target tokens."""
    adapter = fields.take("adapter")
    if adapter is None:
        raise StudyError(
            f"{fields.where}: adapter is missing, which trains all weights: "
            "set adapter: lora or qlora"
        )
    if adapter not in ADAPTERS:
        raise unknown(f"adapter in {fields.where}:", adapter, ADAPTERS)
    for key in PREFERENCES:
        if fields.take(key):
            raise StudyError(
                f"{fields.where}: {key} trains on preferences, study train on targets: remove {key}"
            )
    bits = take_bits(fields)
    if adapter == "qlora" and bits != 4:
        given = f"load_in_{bits}bit" if bits else "no load_in_4bit"
        raise StudyError(
            f"{fields.where}: adapter: qlora and {given} contradict each other: "
            "set load_in_4bit: true"
        )
    return bits


def _targets(experiment: Experiment, fields: Fields) -> str | list[str]:
    linear = fields.take_flag("lora_target_linear")
    modules = take_targets(fields, TARGETS, "lora_target_parameters")
    if linear:
        beyond = {modules} if isinstance(modules, str) else set(modules or ())
        if outside := sorted(beyond & OUTSIDE_BLOCKS):
            experiment.notes.differs.append(
                f"{TARGETS}: {shown(outside)} (adapters are on the linear layers of the blocks)"
            )
        elif beyond:
            experiment.notes.ignored.append(f"{TARGETS} (lora_target_linear covers them)")
        return "all-linear"
    if not modules:
        raise StudyError(
            f"{fields.where}: lora_target_modules is missing and lora_target_linear is not true: "
            "set one of them"
        )
    return modules


def _put_init(experiment: Experiment, fields: Fields) -> None:
    if fields.take_mapping("peft").get("loftq_config"):
        raise StudyError(f"{fields.where}: peft.loftq_config changes the base's weights: remove it")
    if init := refuse_other_base(fields, "peft_init_lora_weights"):
        experiment.notes.differs.append(
            f"peft_init_lora_weights: {init} (adapter.init=kaiming, PEFT's default)"
        )
    if fields.take_flag("peft_use_dora"):
        experiment.notes.differs.append("peft_use_dora: true (plain LoRA is trained)")


def _put_batch(experiment: Experiment, fields: Fields) -> None:
    """Add the batch, and the norm that gradients are clipped at."""
    batch = fields.take_count("micro_batch_size", 1)
    total = fields.take_count("batch_size", batch) if "batch_size" in fields else batch
    if "gradient_accumulation_steps" in fields and total != batch:
        experiment.notes.ignored.append("batch_size (gradient_accumulation_steps decides)")
    accumulation = fields.take_count("gradient_accumulation_steps", max(1, total // batch))
    experiment.values |= {
        "train.batch_size": batch,
        "train.accumulation": accumulation,
        "train.clip": fields.take_number("max_grad_norm", 1.0) or None,
    }


def _put_schedule(experiment: Experiment, fields: Fields) -> None:
    has_warmup = fields.untaken().get("lr_scheduler") != WITHOUT_WARMUP
    put_schedule(experiment, fields, "lr_scheduler", "cosine")
    warmup = experiment.values.get("train.warmup")
    if warmup is None and has_warmup:
        experiment.values["train.warmup"] = USUAL_WARMUP
        fields.assumed.append(f"warmup_ratio {USUAL_WARMUP} (at most {MOST_WARMUP} steps)")
    elif warmup == 1:  # Axolotl's builder replaces it, since the first step would be the warm-up.
        experiment.values["train.warmup"] = 2


def _put_precision(experiment: Experiment, fields: Fields) -> None:
    asked = fields.take_one_of("bf16", (True, False, "true", "false", "auto", "full"))
    if asked is None and not any(fields.untaken().get(key) for key in ("fp16", "float16")):
        asked = "auto"
        fields.assumed.append("bf16 auto")
    if fields.untaken().get("bfloat16"):
        asked = True
    experiment.values["precision"] = bf16(asked)


def _note_plugins(experiment: Experiment, fields: Fields) -> None:
    given = fields.take_names("plugins") or []
    for plugin in [given] if isinstance(given, str) else given:
        if plugin.rpartition(".")[2] in INERT_PLUGINS:
            experiment.notes.ignored.append(f"plugins: {plugin}")
        else:
            experiment.notes.differs.append(f"plugins: {plugin} (it is not run)")


def _note_special_tokens(experiment: Experiment, fields: Fields) -> None:
    """Padding is masked, so its token changes nothing; other tokens are the base's own."""
    tokens = fields.take_mapping("special_tokens")
    others = {key: token for key, token in tokens.items() if key != "pad_token" and token}
    if others:
        experiment.notes.differs.append(
            f"special_tokens: {shown(others)} (the base's own tokenizer is used)"
        )
    elif tokens:
        experiment.notes.ignored.append("special_tokens")


def _note_defaults(experiment: Experiment, fields: Fields) -> None:
    """Note what Axolotl does with keys that are not in the file."""
    silent = fields.untaken()
    if "excess_length_strategy" not in silent:
        experiment.notes.differs.append(
            "excess_length_strategy: drop, Axolotl's default (longer rows are cut)"
        )
    if "seed" not in experiment.values:
        experiment.notes.defaults.append("seed: Axolotl draws adapters without one (seed=0)")
    if fields.assumed:
        experiment.notes.defaults.append(f"Axolotl's defaults: {', '.join(fields.assumed)}")


def put_datasets(experiment: Experiment, fields: Fields, folder: Path) -> None:
    """Add the first of ``datasets``, and the examples to hold out. ``folder`` holds the file."""
    experiment.values["data.sequence_length"] = fields.take_whole("sequence_len", 512)
    datasets = fields.take("datasets")
    if not isinstance(datasets, list) or not all(isinstance(entry, dict) for entry in datasets):
        raise fields.wrong(
            "datasets", shown(datasets), "is not a list of datasets with a path and a type"
        )
    entry = Fields(datasets[0], f"{fields.where}: datasets[0]")
    file = put_rows(experiment, _rows(experiment, entry, fields, folder), folder)
    note_rest(entry, experiment.notes, "datasets[0].")
    for n, other in enumerate(datasets[1:], start=1):
        experiment.notes.differs.append(
            f"datasets[{n}]: {shown(other)} (only the first is trained on: join them in a file)"
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
                f"datasets[0].data_files: {shown(files)} (one file is read: give data.path=... "
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
            f"datasets[0]: {part} of type {shown(kind)} (convert its rows to one of "
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
        differs.append(f"datasets[0].type: {shown(kind)} (rows and prompts are those of {base})")
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
            differs.append(f"datasets[0].type.{key}: {shown(prompt)} ({instead})")
    note_rest(kind, experiment.notes, "datasets[0].type.")
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
            f"datasets[0].roles: {shown(roles)} (roles have their usual names)"
        )
    if mapping not in PROPERTIES or format_of(column) != MESSAGES:
        experiment.notes.differs.append(
            f"datasets[0].field_messages: {column} with {shown(mapping)} (messages or "
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
        notes.ignored += [
            f"{key} (the dataset has its own)" for key, given in shared.items() if given
        ]
    name, jinja = chosen["chat_template"], chosen["chat_template_jinja"]
    if format_ is None:
        given = {key: shown(value) for key, value in chosen.items() if value}
        notes.differs += [
            f"{key}: {value} (see data.chat_template)" for key, value in given.items()
        ]
        return None
    if format_ != MESSAGES:
        notes.ignored += [f"{key} (no conversations)" for key, value in chosen.items() if value]
        return None
    if jinja and name in (None, "jinja"):
        if file := first_file(folder / jinja):
            return str(file.resolve())
        notes.differs.append(
            f"chat_template_jinja: {shown(jinja)} ({TOKENIZERS_OWN}: write the template to a file "
            "and give data.chat_template=FILE)"
        )
        return None
    fallback = str(name).startswith("tokenizer_default_fallback_")
    if name is None or name in TEMPLATES or fallback:
        return TEMPLATES.get(str(name))
    notes.differs.append(f"chat_template: {name}, of Axolotl ({TOKENIZERS_OWN})")
    return None
