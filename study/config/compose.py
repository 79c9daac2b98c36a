"""Hydra configurations to typed cells; where ``conf/`` is; the resolvers that ``conf/`` uses.

The resolver ``near_best`` gives learning rates around the expected best one of each cell, because
that varies with p, alpha and rank by orders of magnitude. In an experiment

    optimizer.lr: "${near_best:-1,85,9.8,10},${near_best:0,85,9.8,10}"

sweeps half of and once the expected best rate of each cell. A cell's identity and record hold the
resulting number. The four arguments are the distance from the expected best rate, in doublings, and
``move``, ``r_sign`` and ``crossover`` of :func:`expected_best`.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from study.config.checks import validate
from study.config.types import CellConfig
from study.config.values import read
from study.errors import StudyError, unknown
from study.vocabulary import scaling

PACKAGE = Path(__file__).parents[1]
CONF = PACKAGE / "conf" if (PACKAGE / "conf").exists() else PACKAGE.parent / "conf"
"""``conf/``: inside the package in a wheel, next to it in a clone."""


ELSEWHERE = {
    "r": "adapter.rank",
    "lora_r": "adapter.rank",
    "learning_rate": "optimizer.lr",
    "max_steps": "train.steps",
    "max_length": "data.sequence_length",
    "max_seq_length": "data.sequence_length",
}
"""Names of PEFT, Axolotl and the Trainer that are not near ours."""
_OTHER_MEANING = ("max", "min", "eval")
"""First words that give a name another meaning: max_batch_size is no batch_size."""
_FIELDS = {field.name for field in fields(CellConfig)}


def parse(composed: DictConfig) -> CellConfig:
    """A composed Hydra config as a checked cell.

    Keys that begin with ``_`` are left out: users may interpolate their own. Other unknown ones are
    refused, because Hydra adds ``+lr=0.5`` to the configuration, where nothing reads it.
    """
    for key in map(str, composed):
        if key != "hydra" and not key.startswith("_") and key not in _FIELDS:
            raise StudyError(unknown_key(key, composed))
    try:
        values: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise StudyError(f"{error.full_key} is not set: give {error.full_key}=...") from None
    except OmegaConfBaseException as error:
        raise StudyError(first_line(error)) from error
    cell = read(CellConfig, values)
    validate(cell)
    return cell


def unknown_key(key: str, parent: DictConfig) -> str:
    """The line about ``key``, which is not a key of a cell, or which ``parent`` does not have."""
    if key in _FIELDS:
        return f"{key} is not set: leave out ~{key}, which removes what a cell needs"
    if key in parent and OmegaConf.is_dict(parent[key]):
        return f"unknown group {key}: a file of an experiment begins with # @package _global_"
    group, dot, name = key.rpartition(".")
    others = [str(each) for each in parent if each not in ("hydra", name)]
    whole: Any = OmegaConf.to_container(parent._get_root(), resolve=False)
    dotted = {
        known: f"{part}.{known}"  # the first of the same name: train.steps, not probes.steps
        for part, values in reversed(whole.items())
        if part != "hydra" and isinstance(values, dict)
        for known in values
    }
    dotted |= ELSEWHERE | {each: group + dot + each for each in others}
    first = name.partition("_")[0]

    def near(known: Iterable[str], cutoff: float) -> list[str]:
        limits = first in _OTHER_MEANING
        alike = [each for each in known if not limits or each.startswith(first)]
        return get_close_matches(name, alike, 1, cutoff)

    likely = near(others, 0.7) or near(dotted, 0.65)
    choices = "" if likely else f": choose from {', '.join(others)}; see study train --help"
    return f"unknown key {key}{meant([dotted[each] for each in likely])}{choices}"


def meant(likely: Sequence[str]) -> str:
    """The end of a line about a mistake: the first of what was ``likely`` meant, if any."""
    return f": did you mean {likely[0]}?" if likely else ""


def first_line(error: BaseException) -> str:
    """The key that an error of OmegaConf is about, and its first line."""
    line = str(error).splitlines()[0]
    key = getattr(error, "full_key", None)
    return f"{key}: {line}" if key and key not in line else line


def compose(
    loader: ConfigLoader, name: str, shared: Sequence[str], cells: Sequence[Sequence[str]]
) -> list[CellConfig]:
    """The typed configuration of every cell. ``shared``: overrides of all; ``cells``: each one's
    own.

    Hydra takes 50 ms to compose a configuration. So it composes one per choice of groups, and each
    cell sets its values on a copy, as Hydra does.
    """
    parser = OverridesParser.create(config_loader=loader)

    @cache
    def parsed(text: str) -> Override:
        return parser.parse_override(text)

    @cache
    def is_group(key: str) -> bool:
        return bool(loader.get_group_options(key))  # Hydra takes 5 ms

    def is_value(text: str) -> bool:
        """Whether an override only sets a key: it chooses no group and adds no key."""
        override = parsed(text)
        if override.is_add() or override.is_force_add() or override.is_delete():
            return False
        return isinstance(override.value(), dict) or not is_group(override.key_or_group)

    @cache
    def base(choices: tuple[str, ...]) -> DictConfig:
        config = loader.load_configuration(name, [*shared, *choices], run_mode=RunMode.RUN)
        own = [str(key) for key in config if key != "hydra"]
        found = OmegaConf.masked_copy(config, own)
        OmegaConf.set_struct(found, True)  # a key that does not exist is an error
        return found

    configs = []
    for cell in cells:
        config = copy.deepcopy(base(tuple(text for text in cell if not is_value(text))))
        for override in (parsed(text) for text in cell if is_value(text)):
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        configs.append(parse(config))
    return configs


def search_path(hydra_overrides: Iterable[str]) -> list[str]:
    """The user's folders of configuration files, which Hydra separates from a task's overrides."""
    return [override for override in hydra_overrides if override.startswith("hydra.searchpath=")]


def _by(name: str, table: DictConfig) -> object:
    if name not in table:
        raise unknown("choice", name, [str(key) for key in table])
    return table[name]


OmegaConf.register_new_resolver("by", _by, replace=True)
"""For ``conf/``: ``${by:${optimizer.name},{sgd: 1e-4, adamw: 3e-6}}`` depends on another value."""


def expected_best(
    gamma: float, rank: float, steps: int, move: float, r_sign: float, crossover: float
) -> float:
    """The constant learning rate of a sign-like rule that moves the adapter output by ``move``.

    After ``steps`` steps at ``lr``, A has moved by ``rho = crossover lr steps`` relative to its
    init, and the output by ``lr steps gamma sqrt(r (r + r_sign - 1)) (1 + rho)``
    (:mod:`study.analysis.rate_theory`).
    """
    asked = move / (gamma * math.sqrt(rank * (rank + r_sign - 1)))
    # The positive root x = lr steps of crossover x^2 + x = asked, without cancellation.
    return 2 * asked / (1 + math.sqrt(1 + 4 * crossover * asked)) / steps


def _near_best(
    doublings: float, move: float, r_sign: float, crossover: float, *, _root_: DictConfig
) -> float:
    adapter = _root_.adapter
    rule, power = scaling.named_rule(str(adapter.scaling), adapter.exponent)
    rank = float(adapter.rank)
    gamma = scaling.gamma(rule, float(adapter.alpha), rank, power, adapter.get("crossover"))
    rate = expected_best(gamma, rank, int(_root_.train.steps), move, r_sign, crossover)
    # Machines round powers and roots differently in the last digit. With three digits a rate, and
    # so the identity of a cell, is the same on all machines.
    return float(f"{rate * 2.0**doublings:.2e}")


OmegaConf.register_new_resolver("near_best", _near_best, replace=True)
