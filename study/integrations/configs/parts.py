"""Shared by the readers: bits, scaling rule, base, data, and the list of keys left out."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from study.config import DataConfig
from study.config.bounds import FilePath
from study.data import Example, load_examples
from study.errors import StudyError
from study.integrations.configs.experiment import Experiment
from study.integrations.configs.fields import Fields
from study.vocabulary.peft_fields import refusal

STAND_INS = {"xbrl_extract_train.jsonl": "xbrl_extract"}
"""Generated data that is used if a file of FinLoRA's is missing."""

WHY = {
    "peft_use_dora": "plain LoRA is trained",
    "use_dora": "plain LoRA is trained",
    "chat_template": "text is context + target, without a template",
    "train_on_inputs": "the loss is on targets only",
    "sample_packing": "one example per row",
    "lora_model_dir": "adapters start from their init",
    "lora_modules_to_save": "only adapters are trained",
    "modules_to_save": "only adapters are trained",
    "init_lora_weights": "adapter.init=kaiming, PEFT's default",
    "rank_pattern": "one rank for all layers",
    "alpha_pattern": "one alpha for all layers",
    "layers_to_transform": "all layers",
    "peft_layers_to_transform": "all layers",
    "fp16": "precision=float32",
    "plugins": "every run has probes",
}
"""What is trained instead, for keys that would change it."""


def scaling_rule(use_rslora: bool) -> str:
    """``rslora`` or ``lora``."""
    return "rslora" if use_rslora else "lora"


def take_bits(fields: Fields) -> int | None:
    """Bits of the base's weights, from ``quant_bits``, ``load_in_8bit`` and ``load_in_4bit``.

    Raises :class:`StudyError` if they contradict each other or name other bits than 8 and 4.
    """
    bits = fields.take_whole("quant_bits")
    if bits not in (None, 4, 8):
        raise fields.wrong(
            "quant_bits", bits, "is neither 8 nor 4: leave it out for full precision"
        )
    given = {f"quant_bits: {bits}": bits} if bits else {}
    given |= {f"load_in_{n}bit: true": n for n in (8, 4) if fields.take_flag(f"load_in_{n}bit")}
    if len(set(given.values())) > 1:
        raise StudyError(f"{fields.where}: {' and '.join(given)} contradict each other: keep one")
    return next(iter(given.values()), None)


def put_base(experiment: Experiment, path: str, bits: int | None, folder: Path) -> None:
    """Set the base: a folder beside the file if it exists, else the name or path as given."""
    FilePath().check("the base", path)
    beside = folder / path
    experiment.groups["model"] = "hf"
    experiment.values["model.path"] = str(beside.resolve()) if beside.is_dir() else path
    if bits:
        experiment.values["model.quant_bits"] = bits


def put_data_file(
    experiment: Experiment, key: str, path: str, folder: Path
) -> list[Example] | None:
    """Set the data file that ``key`` names. Returns its examples, or None if it is not found.

    The file is looked for beside the configuration, then in the working directory. If FinLoRA's
    XBRL extraction is missing, the toolkit's generated one replaces it; the user has to name any
    other missing file.
    """
    FilePath().check(key, path)
    experiment.groups["data"] = "jsonl"
    found = next((p for p in (folder / path, Path(path)) if p.is_file()), None)
    if found is not None:
        experiment.values["data.path"] = str(found.resolve())
        return _examples(str(found), found.stat().st_mtime_ns)
    if stand_in := STAND_INS.get(Path(path).name):
        experiment.groups["data"] = stand_in
        experiment.left_out.append(
            f"{key}: {path} not found: data={stand_in} is used instead, generated questions of the "
            f"same form; if you have the file: data=jsonl data.path={Path(path).name}"
        )
    else:
        experiment.left_out.append(f"{key}: {path} not found: give data.path=... when you train")
    return None


@lru_cache(maxsize=2)
def _examples(path: str, changed: int) -> list[Example]:
    """The examples of a file, read once for all values of a sweep."""
    return load_examples(DataConfig("jsonl", path))


def refuse_other_base(fields: Fields, key: str) -> Any:
    """Take the init that PEFT calls ``init_lora_weights``; None for PEFT's default.

    Raises :class:`StudyError` for one that PEFT does not have, and for one that changes the base.
    """
    init = fields.take(key)
    if why := refusal({"init_lora_weights": init}, trained=False):
        raise StudyError(f"{fields.where}: {why.replace('init_lora_weights', key, 1)}")
    return None if init is True else init


def list_untaken(experiment: Experiment, fields: Fields, prefix: str = "") -> None:
    """Add a line to ``left_out`` for every key that was not taken."""
    for key, value in fields.untaken().items():
        why = f" ({WHY[key]})" if key in WHY else ""
        experiment.left_out.append(f"{prefix}{short(key)}: {short(value)}{why}")


def short(value: Any) -> str:
    """A value on one line, at most 100 characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= 100 else text[:97] + "..."
