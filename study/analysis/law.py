"""The law of the best learning rate. ``research/law.py`` fits it, and ``study advise`` reads it:

log(lr (1 + k rho)) = level - log M,    M = gamma sqrt(r (r + c)).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from study.theory import family, move
from study.vocabulary import scaling

STEPS, SIZE, BATCH = 256.0, 1e9, 16.0
"""Where the level of the law is its ``base``."""
USUAL_STEPS, USUAL_SIZE = 500.0, 4e9
"""For a run that does not give them."""
SIZES = {"tiny": 1e5, "small": 2.8e6, "smollm2": 1.35e8, "gemma3": 2.7e8}
"""Weights of the models of the studies, by :func:`short_model`."""
OF_SGD = 6.0
"""``1 + r_align``, which is c under SGD."""

Law = Mapping[str, float]
"""``base``, ``steps``, ``size``, ``batch``, ``decay`` and ``spectral`` of the level; log ``c`` and
its slope ``c_steps``; ``rho``, which is ``log(k rho / lr)``, and its slopes."""
Facts = Mapping[str, Any]
"""What the law reads of a run (:meth:`Setting.facts`): numbers, or the columns of many runs."""


@dataclass(frozen=True)
class Setting:
    """A run; None and empty names are unknown. ``rule``: a value of ``adapter.scaling``. ``ratio``:
    B's learning rate over A's, which ``lr`` is. ``batch``: examples of an optimizer step."""

    rank: int
    alpha: float
    rule: str
    optimizer: str
    crossover: float = 40.0
    ratio: float = 1.0
    lr: float | None = None
    steps: int | None = None
    model: str = ""
    batch: int | None = None
    epochs: float | None = None
    schedule: str = ""

    @property
    def gamma(self) -> float:
        rule, p = scaling.named_rule(self.rule)
        return scaling.gamma(rule, self.alpha, self.rank, p, self.crossover)

    def under(self, rule: str) -> "Setting":
        """The same run under another rule: with the alpha that has the same gamma."""
        unit = replace(self, rule=rule, alpha=1.0)
        return replace(unit, alpha=self.gamma / unit.gamma)

    @property
    def first_move(self) -> float:
        """The change of a usual layer's output in a first step of size 1, up to a constant; of the
        loss under a spectral rule, whose closed form needs more of the layer."""
        is_spectral = family(self.optimizer) == "spectral"
        size = self.gamma if is_spectral else move(self.rank, self.gamma, self.optimizer)
        return size * self.ratio

    @property
    def size(self) -> float | None:
        """The weights of its model, by its name."""
        name = re.sub(r"-(\d)_(\d)", r"-\1.\2", self.model)  # stablelm-2-1_6b
        told = re.search(r"(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z])", name)  # 8x7b: eight experts
        unit = {"b": 1e9, "m": 1e6}
        size = int(told[1] or 1) * float(told[2]) * unit[told[3]] if told else None
        return SIZES.get(self.model, size)

    @property
    def unknown(self) -> list[str]:
        """The names of the facts that are assumed."""
        told = (self.steps, self.size, self.batch, self.schedule)
        names = ("steps", "size", "batch", "decay")
        return [name for name, value in zip(names, told, strict=True) if not value]

    def facts(self) -> dict[str, float]:
        kind = family(self.optimizer)
        power = 0.5 if kind == "linear" else 1.0  # M has gamma^2 ratio under linear rules
        return {
            "rank": float(self.rank),
            "gamma": self.gamma * self.ratio**power,
            "steps": self.steps or USUAL_STEPS,
            "size": self.size or USUAL_SIZE,
            "batch": self.batch or BATCH,
            "decay": float(self.schedule != "constant"),
            "spectral": float(kind == "spectral"),
            "linear": float(kind == "linear"),
        }


def short_model(name: str) -> str:
    """The name by which studies on the same model are found."""
    last = name.rstrip("/").rpartition("/")[2].lower()
    starts = {"smollm2-135m": "smollm2", "gemma-3-270m": "gemma3"}
    return next((short for start, short in starts.items() if last.startswith(start)), last)


def level(law: Law, run: Facts) -> Any:
    """The level, up to that of the model and the study."""
    logs = {"steps": STEPS, "size": SIZE, "batch": BATCH}
    found = law["base"] + sum(law[name] * np.log(run[name] / at) for name, at in logs.items())
    return found + law["decay"] * run["decay"] + law["spectral"] * run["spectral"]


def log_move(law: Law, run: Facts) -> Any:
    """log M."""
    r, log_gamma = run["rank"], np.log(run["gamma"])
    c = np.exp(law["c"] + law["c_steps"] * np.log(run["steps"] / STEPS))
    sign, linear = (np.log(r * (r + each)) / 2 for each in (c, OF_SGD))
    sign = np.where(run["linear"], log_gamma + linear, sign)
    return log_gamma + np.where(run["spectral"], 0.0, sign)


def log_motion(law: Law, run: Facts) -> Any:
    """The log of ``k rho / lr``."""
    found = law["rho"] + law["rho_size"] * np.log(run["size"] / SIZE)
    found = found + law["rho_steps"] * np.log(run["steps"] / STEPS)
    return np.where(run["linear"], -99.0, found)


def log_rate(law: Law, run: Facts, off: Any = 0.0) -> Any:
    """The log of the best rate, at ``off`` from the level of the law."""
    motion = log_motion(law, run)
    both = np.asarray(level(law, run) + off - log_move(law, run) + motion)
    # The root v of v (1 + v) = e^both.
    usual = np.clip(both, -30.0, 60.0)
    root = np.log(np.expm1(np.log1p(4 * np.exp(usual)) / 2) / 2)
    return np.where(both < -30, both, root) - motion


def off_level(law: Law, run: Facts, log_lr: Any) -> Any:
    """The inverse of :func:`log_rate`."""
    motion = np.log1p(np.exp(log_motion(law, run) + log_lr))
    return log_lr + motion + log_move(law, run) - level(law, run)
