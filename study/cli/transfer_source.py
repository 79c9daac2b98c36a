"""What ``study transfer`` starts from and goes to: a run, and a rank and rule."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from study.cli.group import say
from study.config import AdapterConfig, OptimizerConfig
from study.config.types import MOST_RANK
from study.config.values import LARGEST_FLOAT, read
from study.errors import StudyError, given, short, unknown
from study.integrations.configs import read_file
from study.store import find_cell
from study.theory.equivalence import converted_alpha
from study.vocabulary.optimizers import MOST_USED, OPTIMIZERS
from study.vocabulary.scaling import POWER, exponent, rule_words

USUAL_INIT = "kaiming"
NO_RATE = 1.0
"""Stands for a learning rate that is not known. All learning rates are then factors on it."""


@dataclass(frozen=True)
class TransferRun:
    """A run whose settings are to be converted.

    - ``origin``: in words; ``has_lr``: whether its learning rate is known;
    - ``p``: of its rule; ``init``: of its factors, which may be one without theory;
    - ``clip``: the gradient norm that it clips at;
    - ``assumed``: what its configuration does not say.
    """

    origin: str
    adapter: AdapterConfig
    optimizer: OptimizerConfig
    has_lr: bool
    p: float
    init: str
    clip: float | None
    assumed: tuple[str, ...] = ()

    def rate(self, factor: float) -> str:
        """A learning rate, ``factor`` times that of the run, in words."""
        if self.has_lr:
            return f"{self.optimizer.lr * factor:.4g}"
        return "yours" if math.isclose(factor, 1) else f"{factor:.4g} times yours"


@dataclass(frozen=True)
class Target:
    """What is asked for. ``alpha``: with which the run at its own rank has the target's rule."""

    rank: int
    rule: str
    p: float
    alpha: float

    @property
    def name(self) -> str:

        return rule_words(self.rule, self.p if self.rule == POWER else None)


def read_source(
    path: Path, entry: str | None, lr: str | None, optimizer: str | None
) -> TransferRun:
    """The run that ``path`` describes. ``lr`` and ``optimizer`` fill in what it does not say.

    Raises :class:`StudyError` for whatever cannot be read, and for a value out of range.
    """
    origin, settings = _settings(path, entry)
    name, rate, assumed = _training(origin, settings, lr, optimizer)
    ratio, clip = (settings.get(key) for key in ("optimizer.loraplus_lr_ratio", "train.clip"))
    power = settings.get("adapter.exponent")
    adapter = AdapterConfig(
        rank=settings["adapter.rank"],
        alpha=settings["adapter.alpha"],
        scaling=settings["adapter.scaling"],
        exponent=None if power is None else _number("adapter.exponent", power, 1.0),
        targets="all-linear",
        init=USUAL_INIT,
        dropout=0.0,
    )
    trained = OptimizerConfig(
        name=name,
        lr=NO_RATE if rate is None else rate,
        weight_decay=0.0,
        loraplus_lr_ratio=_number("optimizer.loraplus_lr_ratio", ratio, 1.0),
    )
    for part in (adapter, trained):
        try:
            read(type(part), asdict(part))
        except StudyError as error:
            raise StudyError(f"{origin}: {error}") from None
    if adapter.rank == math.inf:
        raise StudyError(f"{origin} has infinite rank, which no alpha reaches: give a finite run")
    try:
        p = exponent(adapter.scaling, adapter.exponent)
    except ValueError as error:
        raise StudyError(f"{origin}: {error}") from None
    _check_gamma(origin, adapter.gamma)
    return TransferRun(
        *(origin, adapter, trained, rate is not None),
        p=p,
        init=str(settings.get("adapter.init", USUAL_INIT)),
        clip=None if clip is None else _number("train.clip", clip, 1.0),
        assumed=tuple(assumed),
    )


def _training(
    origin: str, settings: Mapping[str, Any], lr: str | None, optimizer: str | None
) -> tuple[str, float | None, list[str]]:
    """The optimizer's name, the learning rate if it is known, and what is assumed."""
    given_lr = None if lr is None else _parsed("--lr", lr)
    own_lr, own_name = settings.get("optimizer.lr"), settings.get("optimizer.name")
    for option, asked, own in (("--lr", given_lr, own_lr), ("--optimizer", optimizer, own_name)):
        if asked is not None and own is not None and asked != own:
            raise StudyError(f"{option}={asked}, but {origin} says {own}: leave out {option}")
    assumed = []
    name = own_name or optimizer
    if name is None:
        name = MOST_USED
        assumed.append(f"optimizer {name} (--optimizer names another)")
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    rate = own_lr if own_lr is not None else given_lr
    if rate is None:
        assumed.append("no learning rate: rates are factors on yours (--lr gives it)")
    return name, rate, assumed


def _parsed(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise StudyError(f"{option}={short(text)} is not a number: give one such as 2e-4") from None


def _settings(path: Path, entry: str | None) -> tuple[str, Mapping[str, Any]]:
    """Where settings come from, and the settings by dotted key."""
    if path.parent.name == "cells":
        folder, record = find_cell(path.parent.parent, path.name)
        flat = {
            f"{group}.{key}": value
            for group in ("adapter", "optimizer", "train")
            for key, value in record["config"][group].items()
        }
        return f"cell {folder.name} of {path.parent.parent.name}", flat
    if path.is_dir():
        inside = path / "adapter_config.json"
        if not inside.is_file():
            raise StudyError(
                f"{path} is a folder without adapter_config.json: give a configuration file, the "
                "folder of a PEFT adapter, or a cell, RESULTS/NAME/cells/ID"
            )
        path = inside

    read = read_file(path, entry)
    for difference in read.notes.differs:
        say(f"read as: {difference}")
    named = {"optimizer.name": read.groups["optimizer"]} if "optimizer" in read.groups else {}
    return read.origin, {**read.values, **named}


def _number(key: str, value: Any, usual: float) -> float:
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise StudyError(f"{key}={short(value)} is not a number: give one")
    return float(value)


def read_target(run: TransferRun, rank: str | None, rule: str | None) -> Target:
    """Rank and rule of the new run. Raises :class:`StudyError` for values out of range."""
    new: Any = run.adapter.rank
    if rank is not None:
        new = int(rank) if rank.isascii() and rank.isdecimal() and len(rank) < 20 else 0
        if not 1 <= new <= MOST_RANK:
            raise StudyError(
                f"--rank={given(rank)} is out of range: give a whole number from 1 to {MOST_RANK}"
            )
    adapter = replace(run.adapter, rank=new)
    if rule is not None:
        adapter = replace(adapter, scaling=rule, exponent=None)
    adapter = read(AdapterConfig, asdict(adapter), "adapter.")
    try:
        p = exponent(adapter.scaling, adapter.exponent)
    except ValueError:
        raise StudyError(f"--rule={short(rule)} has no exponent: give a number, its p") from None
    alpha = converted_alpha(adapter.alpha, run.adapter.rank, run.p, p)
    _check_gamma(f"rank {new} with alpha {alpha:.4g}", alpha * float(new) ** -p)
    return Target(new, adapter.scaling, p, alpha)


def _check_gamma(where: str, gamma: float) -> None:
    """Raises :class:`StudyError` for a gamma that a run in float32 cannot have."""
    if not 1 / LARGEST_FLOAT <= gamma <= LARGEST_FLOAT:
        raise StudyError(
            f"{where} has gamma {gamma:g}, which float32 does not hold: change alpha or the rule"
        )
