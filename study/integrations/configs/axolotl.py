"""Axolotl's YAML (axolotl-ai-cloud/axolotl, src/axolotl/utils/schemas).

A key that is missing has Axolotl's default. :mod:`~study.integrations.configs.axolotl_data` reads
the datasets; :mod:`~study.integrations.configs.axolotl_keys` lists the keys that no reader takes.
"""

from pathlib import Path

from study.errors import StudyError, unknown
from study.integrations.configs import axolotl_keys
from study.integrations.configs.axolotl_data import put_datasets
from study.integrations.configs.experiment import Experiment
from study.integrations.configs.fields import Fields
from study.integrations.configs.notes import short
from study.integrations.configs.parts import (
    put_base,
    refuse_other_base,
    scaling_rule,
    take_bits,
    take_targets,
)
from study.integrations.configs.training import (
    WITHOUT_WARMUP,
    bf16,
    put_length,
    put_optimizer,
    put_schedule,
)

ADAPTERS = ("lora", "qlora")
TARGETS = "lora_target_modules"
OUTSIDE_BLOCKS = {"embed_tokens", "lm_head", "wte", "wpe", "embed_in", "embed_out"}
"""Usual names of embeddings and heads, which ``lora_target_linear`` does not cover."""
PREFERENCES = ("rl", "reward_model", "process_reward_model")
USUAL_WARMUP, MOST_WARMUP = 0.03, 100
"""Axolotl's default: a share of the steps, and its limit (core/builders/base.py)."""


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
    axolotl_keys.TOP.sort(fields, experiment.notes)
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
                f"{TARGETS}: {short(outside)} (adapters are on the linear layers of the blocks)"
            )
        elif beyond:
            experiment.notes.inert.append(f"{TARGETS} (lora_target_linear covers them)")
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
        experiment.notes.inert.append("batch_size (gradient_accumulation_steps decides)")
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
        if plugin.rpartition(".")[2] in axolotl_keys.INERT_PLUGINS:
            experiment.notes.inert.append(f"plugins: {plugin}")
        else:
            experiment.notes.differs.append(f"plugins: {plugin} (it is not run)")


def _note_special_tokens(experiment: Experiment, fields: Fields) -> None:
    """Padding is masked, so its token changes nothing; other tokens are the base's own."""
    tokens = fields.take_mapping("special_tokens")
    others = {key: token for key, token in tokens.items() if key != "pad_token" and token}
    if others:
        experiment.notes.differs.append(
            f"special_tokens: {short(others)} (the base's own tokenizer is used)"
        )
    elif tokens:
        experiment.notes.inert.append("special_tokens")


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
