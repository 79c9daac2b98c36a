"""The learning rate for a rank, a rule and an alpha, and its interval (docs/law.md).

``advice.json`` holds the law (:mod:`study.analysis.law`). ``docs/evidence.py`` writes it.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import numpy as np
import pandas as pd

from study.analysis.law import USUAL_STEPS, Facts, Law, Setting, log_rate, off_level
from study.analysis.losses import INSIDE
from study.theory import family
from study.theory.rounding import swallowed

USUAL_RATE = 3e-4
"""Of a run with an optimizer whose best rates were not measured."""
SIZE_SD = 1.5
"""Of the log of the size of an unknown model."""
MIDDLE = {"size": 3e9, "steps": 500.0}
"""The median published sweep, in round numbers."""
WIDE = 1.645
"""Standard deviations of half a 90 % interval."""


@dataclass(frozen=True)
class Span:
    value: float
    low: float
    high: float

    def __iter__(self) -> Iterator[float]:
        return iter((self.value, self.low, self.high))


@cache
def committed() -> dict[str, Any]:
    return dict(json.loads((files("study.analysis") / "advice.json").read_text()))


@dataclass(frozen=True)
class Advice:
    """``rate``: a learning rate or, if ``is_relative``, a factor on that of the run. ``rests``: on
    the rate of the ``run``, on best rates of the user's ``studies``, or on the ``law`` alone."""

    rate: Span
    rests: Literal["run", "studies", "law"]
    is_relative: bool = False


Known = Mapping[str, Any]
"""``law``: coefficients with their standard deviations. ``spread``: of coefficients between models
and studies, and ``scatter``, of a single rate. ``width``: by which intervals are widened, so that
90 % hold in the test. ``distance``: see :func:`error_at`. ``models``: levels of models by name.
``optimizers``: those with measured rates."""


def _means(known: Known) -> dict[str, float]:
    return {name: value for name, (value, _) in known["law"].items()}


def _interval(
    predict: Callable[[Law], Any], known: Known, width: str, more: float
) -> tuple[float, float]:
    """What the law predicts, and half of its 90 % interval: from the errors of the coefficients,
    their spread, and ``more``."""
    law = _means(known)
    value, variance = float(predict(law)), more**2
    for name, (_, error) in known["law"].items():
        sd = math.hypot(error, known["spread"].get(name, 0.0))
        variance += (float(predict({**law, name: law[name] + sd})) - value) ** 2
    return value, WIDE * known["width"][width] * math.sqrt(variance)


def moved(
    old: Facts, new: Facts, log_lr: float, known: Known, keeps: bool = True
) -> tuple[float, float]:
    """The log of the best rate of ``new`` if that of ``old`` is ``log_lr``, and half of its
    interval. ``keeps``: whether the number of steps leaves the rate as it is if both schedules
    decay. There the law alone predicts worse (docs/law.md)."""

    def predict(law: Law, old: Facts = old) -> Any:
        return log_rate(law, new, off_level(law, old, log_lr))

    kind = "moved" if all(old[name] == new[name] for name in ("steps", "batch")) else "steps"
    value, half = _interval(predict, known, kind, math.sqrt(2) * known["spread"]["scatter"])
    if keeps and old["decay"] and new["decay"]:
        value = float(predict(_means(known), {**old, "steps": new["steps"]}))
    return value, half


def alone(run: Facts, model: str, known: Known, has_size: bool = True) -> tuple[float, float]:
    """The log of the best rate of a run by the law alone, and half of its interval."""
    off, of_size = known["models"].get(model, 0.0), known["law"]["size"][0]
    unknown_size = 0.0 if has_size else SIZE_SD * of_size

    def predict(law: Law) -> Any:
        return log_rate(law, run, off)

    if model in known["models"] or "distance" not in known:  # an old fit
        width = "seen" if model in known["models"] else "alone"
        noise = math.hypot(known["spread"]["scatter"], unknown_size)
        return _interval(predict, known, width, noise)
    value = float(predict({name: value for name, (value, _) in known["law"].items()}))
    error = math.hypot(error_at(run, known["distance"]), unknown_size)
    return value, WIDE * known["width"]["alone"] * error


def error_at(run: Facts, distance: Mapping[str, float]) -> Any:
    """The standard deviation of the log of a rate that the law gives a new model. It grows with the
    logs of size and steps over those in the middle of the published sweeps (:data:`MIDDLE`)."""
    parts = [distance[name] * np.log(run[name] / at) for name, at in MIDDLE.items()]
    return np.sqrt(distance["near"] ** 2 + sum(part**2 for part in parts))


def _span(value: float, half: float) -> Span:
    return Span(*(math.exp(value + sign * half) for sign in (0, -1, 1)))


def advise(old: Setting, new: Setting, own: pd.DataFrame | None = None) -> list[Advice]:
    """The best rate of ``new``, by the strongest evidence first. ``own``: :func:`best_rates_of` the
    user's studies. Each of them predicts, and weighs by the inverse variance of its prediction."""
    found, facts, known = list[Advice](), new.facts(), committed()
    if own is not None:
        usable = (own["edge"] == INSIDE) & (own["optimizer"] == new.optimizer)
        rows = own[usable & ((own["model"] == new.model) | (not new.model))]
        unknown = new.unknown
        each = [
            moved(dict(row), facts | dict(row[unknown]), row["log_lr"], known)
            for _, row in rows.iterrows()
        ]
        if each:
            values, halves = np.array(each).T
            value = float(np.average(values, weights=halves**-2))
            found.append(Advice(_span(value, halves.min()), "studies"))
    can_move = (old.model, old.optimizer) == (new.model, new.optimizer)
    has_law = new.optimizer in known["optimizers"]
    if can_move and (old.lr is not None or not has_law):
        lr = old.lr or USUAL_RATE
        rate = Span(lr, lr, lr)
        if old.facts() != facts:
            rate = _span(*moved(old.facts(), facts, math.log(lr), known))
        over = 1.0 if old.lr else 1 / lr
        found.append(Advice(Span(*(over * each for each in rate)), "run", not old.lr))
    if has_law:
        found.append(Advice(_span(*alone(facts, new.model, known, bool(new.size))), "law"))
    return found


def in_steps(old: Setting, new: Setting) -> tuple[Setting, Setting]:
    """Both with a number of steps, if epochs and batch tell their ratio."""
    if (old.steps and new.steps) or not (old.epochs and new.epochs and old.batch and new.batch):
        return old, new
    steps = old.steps or USUAL_STEPS
    more = new.epochs / old.epochs * old.batch / new.batch
    return replace(old, steps=round(steps)), replace(new, steps=max(1, round(steps * more)))


def keeps_rate(old: Setting, new: Setting) -> bool:
    """Whether the runs differ in their steps, and this leaves the rate as it is: see
    :func:`moved`."""
    one, other = old.facts(), new.facts()
    return one["steps"] != other["steps"] and bool(one["decay"] and other["decay"])


def parts(old: Setting, new: Setting) -> dict[str, float]:
    """The factor on the best rate of each difference, one after the other; of alpha, at the rule of
    ``new``, under which ``old`` is the same run."""
    law, is_kept = _means(committed()), keeps_rate(old, new)
    found, run = dict[str, float](), old.under(new.rule)
    log_lr = math.log(old.lr) if old.lr else float(log_rate(law, old.facts()))
    for name in ("steps", "rank", "alpha", "ratio", "batch", "schedule"):
        changed = replace(run, **{name: getattr(new, name)})
        start = changed if name == "steps" and is_kept else run
        then = float(log_rate(law, changed.facts(), off_level(law, start.facts(), log_lr)))
        if not math.isclose(then, log_lr, abs_tol=0.01):
            found[name] = math.exp(then - log_lr)
        run, log_lr = changed, then
    return found


def gains(new: Setting) -> list[dict[str, Any]]:
    """``gap``: the loss at the highest rank less that at the lowest, each at its best rate, of the
    study of the nearest steps, and of one of the same model before it."""
    steps = new.steps or USUAL_STEPS
    rows = sorted(committed()["gains"], key=lambda row: abs(math.log(row["steps"] / steps)))
    same = [row for row in rows if row["model"] == new.model]
    return same[:1] + [row for row in rows[:1] if row not in same[:1]]


def lost_in_bf16(run: Setting, lr: float) -> dict[int, float]:
    """By step, the share of the adapter's output that rounding loses under Adam, with the sizes of
    SmolLM2."""
    output = lr * run.first_move
    sizes = committed()["bf16"] if family(run.optimizer) == "sign" else {}
    return {int(step): float(swallowed(1.0, size * output)) for step, size in sizes.items()}
