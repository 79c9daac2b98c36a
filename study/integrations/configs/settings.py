"""What the readers share: base, adapter, rows, optimizer, schedule and length.

Names of optimizers, schedules and lengths are those of transformers' Trainer, to which the tools
pass their own keys.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from study.config.values import LARGEST, check_path
from study.data import files
from study.errors import StudyError
from study.integrations.configs.experiment import Experiment
from study.integrations.configs.fields import Fields
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.peft_fields import refusal
from study.vocabulary.sources import FORMATS

MOST_EPOCHS = 1_000_000
USUAL_OPTIMIZER = "adamw_torch_fused"
"""The Trainer's default. AdamW also replaces an optimizer that the toolkit does not have."""
SCHEDULES = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
WITHOUT_WARMUP = "constant"
"""The Trainer's schedule that ignores warm-up."""
STAND_INS = {"xbrl_extract_train.jsonl": "xbrl_extract"}
"""Generated data that is used if a file of FinLoRA's is missing."""
CONTEXT_TARGET, MESSAGES = "context_target", "messages"
TOKENIZERS_OWN = "the tokenizer's own chat template is used"


def scaling_rule(use_rslora: bool) -> str:
    """``rslora`` or ``lora``."""
    return "rslora" if use_rslora else "lora"


def take_bits(fields: Fields) -> int | None:
    """Bits of the base's weights, from ``quant_bits``, ``load_in_8bit`` and ``load_in_4bit``.

    Raises :class:`StudyError` if they contradict each other or name other bits than 8 and 4.
    """
    bits = take_quant_bits(fields, "quant_bits")
    given = {f"quant_bits: {bits}": bits} if bits else {}
    given |= {f"load_in_{n}bit: true": n for n in (8, 4) if fields.take_flag(f"load_in_{n}bit")}
    if len(set(given.values())) > 1:
        raise StudyError(f"{fields.where}: {' and '.join(given)} contradict each other: keep one")
    return next(iter(given.values()), None)


def take_quant_bits(fields: Fields, key: str) -> int | None:
    """Bits of the base's weights. Raises :class:`StudyError` for other bits than 8 and 4."""
    bits = fields.take_whole(key)
    if bits not in (None, 4, 8):
        raise fields.wrong(key, bits, "is neither 8 nor 4: leave it out for full precision")
    return bits


def put_base(experiment: Experiment, path: str, bits: int | None, folder: Path) -> None:
    """Set the base: a folder beside the file if it exists, else the name or path as given."""
    check_path(path, "the base")
    beside = folder / path
    experiment.groups["model"] = "hf"
    experiment.values["model.path"] = str(beside.resolve()) if beside.is_dir() else path
    if bits:
        experiment.values["model.quant_bits"] = bits


def take_targets(fields: Fields, modules: str, parameters: str) -> str | list[str] | None:
    """``adapter.targets`` from the keys for linear layers and for weights of experts.

    None if neither has a value. A linear layer may be selected by its weight.
    """
    named, given = fields.take_names(modules), fields.take_names(parameters) or []
    given = [given] if isinstance(given, str) else given
    weights = [name.removesuffix(".weight") for name in given]
    if not weights or named == "all-linear":  # which has experts
        return named or None
    if isinstance(named, str) and not named.isidentifier():  # a regex that matches whole paths
        return rf"({named})|(.*\.)?({'|'.join(map(re.escape, weights))})"
    named = [named] if isinstance(named, str) else named or []
    return list(dict.fromkeys([*named, *weights]))


def refuse_other_base(fields: Fields, key: str) -> Any:
    """Take the init that PEFT calls ``init_lora_weights``; None for PEFT's default.

    Raises :class:`StudyError` for one that PEFT does not have, and for one that changes the base.
    """
    init = fields.take(key)
    if why := refusal({"init_lora_weights": init}, trained=False):
        raise StudyError(f"{fields.where}: {why.replace('init_lora_weights', key, 1)}")
    return None if init is True else init


def put_optimizer(experiment: Experiment, fields: Fields, key: str, usual_lr: float | None) -> None:
    """Add the optimizer that ``key`` names, with its learning rate and options."""
    asked = str(fields.take(key, USUAL_OPTIMIZER))
    name = _our_optimizer(asked)
    if name not in OPTIMIZERS:
        name = _our_optimizer(USUAL_OPTIMIZER)
        experiment.notes.differs.append(f"{key}: {asked} ({name} instead)")
    elif "8bit" in asked or "4bit" in asked:
        experiment.notes.differs.append(f"{key}: {asked} ({name}, with states in 32 bits)")
    experiment.groups["optimizer"] = name
    experiment.values["optimizer.lr"] = fields.take_number("learning_rate", usual_lr)
    experiment.values["optimizer.weight_decay"] = fields.take_number("weight_decay", 0.0)
    if (ratio := fields.take_number("loraplus_lr_ratio")) is not None:
        experiment.values["optimizer.loraplus_lr_ratio"] = ratio
    adam = ("adam_beta1", "adam_beta2", "adam_epsilon")
    if not {"betas", "eps"} <= set(OPTIMIZERS[name].options):
        experiment.notes.ignored += [each for each in adam if fields.take_number(each) is not None]
        return
    if "adam_beta1" in fields or "adam_beta2" in fields:
        betas = [fields.take_number("adam_beta1", 0.9), fields.take_number("adam_beta2", 0.999)]
        experiment.values["optimizer.betas"] = betas
    if (eps := fields.take_number("adam_epsilon")) is not None:
        experiment.values["optimizer.eps"] = eps


def _our_optimizer(theirs: str) -> str:
    """Our name of an optimizer of transformers: ``adamw`` for ``paged_adamw_8bit``."""
    return theirs.removeprefix("paged_").split("_")[0]


def put_length(experiment: Experiment, fields: Fields, key: str, usual: float) -> None:
    """Add ``max_steps``, or the epochs that ``key`` names if no such limit is set."""
    epochs = fields.take_number(key, usual) or 0.0
    if not 0 < epochs <= MOST_EPOCHS:
        raise fields.wrong(
            key, epochs, f"is not positive and at most {MOST_EPOCHS}: give such a number"
        )
    most = fields.take_whole("max_steps") or -1  # -1: no limit
    if most > 0:
        experiment.values["train.steps"] = most
        experiment.notes.ignored.append(f"{key} (max_steps decides)")
    else:
        experiment.values["train.epochs"] = epochs


def put_schedule(experiment: Experiment, fields: Fields, key: str, usual: str) -> None:
    """Add the schedule that ``key`` names, and the warm-up."""
    theirs = str(fields.take(key, usual))
    if theirs not in SCHEDULES:
        experiment.notes.differs.append(f"{key}: {theirs} (constant instead)")
    experiment.values["train.schedule"] = SCHEDULES.get(theirs, "constant")
    given = [name for name in ("warmup_steps", "warmup_ratio") if name in fields]
    warmup = _take_warmup(fields)
    if theirs == WITHOUT_WARMUP:
        experiment.values["train.warmup"] = 0
        experiment.notes.ignored += [f"{name} ({key}: constant has no warm-up)" for name in given]
    elif warmup is not None:
        experiment.values["train.warmup"] = warmup


def _take_warmup(fields: Fields) -> float | int | None:
    """Steps, or a share of them below 1. ``warmup_steps`` may hold either, as in transformers 5."""
    steps, ratio = fields.take_number("warmup_steps"), fields.take_share("warmup_ratio")
    if steps and ratio:
        raise StudyError(
            f"{fields.where}: warmup_steps and warmup_ratio contradict each other: keep one"
        )
    if ratio == 1:
        raise fields.wrong("warmup_ratio", 1, "leaves no step after the warm-up: lower it")
    given = [value for value in (steps, ratio) if value is not None]
    if not given:
        return None
    warmup = max(given)  # at most one of them is not 0
    if 0 < warmup < 1:
        return warmup
    if warmup < 0 or not warmup.is_integer():
        raise fields.wrong(
            "warmup_steps", warmup, "is neither a number of steps nor a share of them below 1"
        )
    return int(warmup)


def bf16(value: Any) -> str:
    """``bf16`` or ``float32`` for a value of the key ``bf16``."""
    return "float32" if value in (None, False, "false") else "bf16"


@dataclass(frozen=True)
class Rows:
    """Rows of one format.

    - ``key``: what names them in messages;
    - ``path``: a file, or ``org/name`` on the hub, of which ``split`` and ``subset`` are read;
    - ``format``: one of :data:`study.vocabulary.sources.FORMATS`; None: one that can't be read;
    - ``chat_template``: as ``data.chat_template``.
    """

    key: str
    path: str
    format: str | None
    split: str | None = None
    subset: str | None = None
    chat_template: str | None = None


def put_rows(experiment: Experiment, rows: Rows, folder: Path) -> Path | None:
    """Set the data. Returns the file, or None if there is none on this machine.

    A file is looked for beside the configuration, then in the working directory. If FinLoRA's XBRL
    extraction is missing, the toolkit's generated one replaces it. The user has to name any other
    missing file, and one whose format can't be read.
    """
    check_path(rows.path, rows.key)
    differs = experiment.notes.differs
    experiment.groups["data"] = "file"
    if rows.format is None:
        return None
    experiment.values["data.format"] = rows.format
    if rows.chat_template:
        experiment.values["data.chat_template"] = rows.chat_template
    found = first_file(folder / rows.path, Path(rows.path))
    if found is not None:
        experiment.values["data.path"] = str(found.resolve())
        part = " ".join(each for each in (rows.subset, rows.split) if each)
        if part not in ("", "train"):
            differs.append(f"{rows.key}: {part} of {rows.path} (the whole file is read)")
    elif stand_in := STAND_INS.get(Path(rows.path).name):
        experiment.groups["data"] = stand_in
        experiment.values.pop("data.format")
        differs.append(
            f"{rows.key}: {rows.path} not found: data={stand_in} is used instead, generated "
            "questions of the same form; if you have the file: data=file "
            f"data.path={Path(rows.path).name}"
        )
    elif _is_on_the_hub(rows.path, folder):
        experiment.values["data.path"] = rows.path
        if rows.split:
            experiment.values["data.split"] = rows.split
        if rows.subset:
            experiment.values["data.subset"] = rows.subset
    else:
        differs.append(
            f"{rows.key}: {rows.path} is no file here: give data.path=... when you train"
        )
    return found


def _is_on_the_hub(path: str, folder: Path) -> bool:
    return files.is_hub_name(path) and not files.is_file_name(path) and not (folder / path).is_dir()


def put_heldout(experiment: Experiment, fields: Fields, key: str, file: Path | None) -> None:
    """Add the number of examples to hold out. The tools give a number or a share of the rows."""
    differs = experiment.notes.differs
    asked = fields.take_number(key, 0.0) or 0.0
    if not 0 <= asked <= LARGEST:
        raise fields.wrong(key, asked, "is neither a share nor a number of examples")
    if asked >= 1:
        experiment.values["data.heldout"] = round(asked)
    elif asked and file is not None:
        rows = _count(str(file), file.stat().st_mtime_ns)
        experiment.values["data.heldout"] = max(1, round(asked * rows))
    elif asked:
        differs.append(
            f"{key}: {asked:g} (a share of rows that are not here: data.heldout keeps its default)"
        )
    else:
        differs.append(
            f"{key}: 0 (data.heldout: a few rows are held out, at most a tenth, to measure the "
            "loss on them)"
        )


@lru_cache(maxsize=2)
def _count(path: str, changed: int) -> int:
    """The rows of a file, counted once for all values of a sweep."""
    return sum(1 for _ in files.read(path))


def first_file(*paths: Path) -> Path | None:
    """The first of ``paths`` that is a file."""
    for path in paths:
        try:
            if path.is_file():
                return path
        except OSError:  # a name that is too long names no file
            continue
    return None


def format_of(*names: str) -> str | None:
    """The format whose rows have exactly the fields ``names``, the prompt first; None if none."""
    return next((name for name, row in FORMATS.items() if names in row.needs), None)
