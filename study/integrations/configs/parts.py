"""Shared by the readers: bits, scaling rule, base and init."""

import re
from pathlib import Path
from typing import Any

from study.config.values import check_path
from study.errors import StudyError
from study.integrations.configs.experiment import Experiment
from study.integrations.configs.fields import Fields
from study.vocabulary.peft_fields import refusal


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
