"""The learning rate for a rank, a rule and an alpha, by one law of the best rate (docs/law.md).

A step at the rate lr moves the output of the adapters by ``lr M``. Once A has moved by rho of its
init, which is proportional to lr, it moves it by ``lr M (1 + k rho)`` (docs/derivations.md). At the
best rate

    log(lr (1 + k rho)) = level - log M,    M = gamma sqrt(r (r + c)).

c grows with the steps, from equal descents (c = 0) towards equal outputs (c = r_sign - 1). The
level depends on steps, size of the model, batch, schedule and optimizer. Under SGD M has gamma^2
and A counts as fixed; under Muon M is gamma. ``docs/law.py`` fits it and writes ``advice.json``.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import numpy as np
import pandas as pd

from study.analysis.grouping import groups
from study.analysis.losses import HIGHEST, INSIDE, LOWEST, OF_A_RULE, common_rates, final_losses
from study.analysis.rates import bottom
from study.store import StudyTables
from study.theory import family
from study.theory.equivalence import move
from study.theory.rounding import swallowed
from study.vocabulary import scaling

STEPS, SIZE, BATCH = 256.0, 1e9, 16.0
"""Where the level of the law is its ``base``."""
USUAL_STEPS, USUAL_SIZE, SIZE_SD = 500.0, 4e9, 1.5
"""For a run that does not give them. ``SIZE_SD``: of the log of an unknown size."""
SIZES = {"tiny": 1e5, "small": 2.8e6, "smollm2": 1.35e8, "gemma3": 2.7e8}
"""Weights of the models of the studies, by :func:`short_model`."""
ALIKE = {"adam": "adamw"}
"""Optimizers whose best rate counts as that of another."""
HAVE_RATES, USUAL_RATE = ("adamw", "muon"), 3e-4
"""The optimizers whose best rates were measured, and a rate for a run of another one."""
OF_SGD = 6.0
"""``1 + r_align``, which is c under SGD."""
WIDE = 1.645
"""Standard deviations of half a 90 % interval."""
FEWEST = 8
"""The fewest steps of a part of a run that counts as a shorter run."""

Law = Mapping[str, float]
"""``base``, ``steps``, ``size``, ``batch``, ``decay`` and ``muon`` of the level; log ``c`` and its
slope ``c_steps``; ``rho``, the log of ``k rho / lr``, and its slopes ``rho_size``, ``rho_steps``."""
Facts = Mapping[str, Any]
"""What the law reads of a run (:meth:`Setting.facts`): numbers, or the columns of many runs."""


@dataclass(frozen=True)
class Span:
    value: float
    low: float
    high: float

    def __iter__(self) -> Iterator[float]:
        return iter((self.value, self.low, self.high))


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

    @property
    def size(self) -> float | None:
        """The weights of its model, by its name."""
        told = re.search(r"(\d+(?:\.\d+)?)b(?![a-z])", self.model)
        return SIZES.get(self.model, float(told[1]) * 1e9 if told else None)

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
            "muon": float(kind == "spectral"),
            "linear": float(kind == "linear"),
        }


@cache
def committed() -> dict[str, Any]:
    return dict(json.loads((files("study.analysis") / "advice.json").read_text()))


def short_model(name: str) -> str:
    """The name by which studies on the same model are found."""
    last = name.rstrip("/").rpartition("/")[2].lower()
    starts = {"smollm2-135m": "smollm2", "gemma-3-270m": "gemma3"}
    return next((short for start, short in starts.items() if last.startswith(start)), last)


def level(law: Law, run: Facts) -> Any:
    """The level, up to that of the model and the study."""
    logs = {"steps": STEPS, "size": SIZE, "batch": BATCH}
    found = law["base"] + sum(law[name] * np.log(run[name] / at) for name, at in logs.items())
    return found + law["decay"] * run["decay"] + law["muon"] * run["muon"]


def log_move(law: Law, run: Facts) -> Any:
    """log M."""
    r, log_gamma = run["rank"], np.log(run["gamma"])
    c = np.exp(law["c"] + law["c_steps"] * np.log(run["steps"] / STEPS))
    sign, linear = (np.log(r * (r + each)) / 2 for each in (c, OF_SGD))
    sign = np.where(run["linear"], log_gamma + linear, sign)
    return log_gamma + np.where(run["muon"], 0.0, sign)


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


def best_rates_of(of: StudyTables, source: str) -> pd.DataFrame:
    """The best rate of each rule and rank of a study in float32, by the mean loss over seeds: a row
    with what the law reads, ``log_lr`` and ``edge``.

    At an edge of the rates tried the best rate is only bounded, by the middle of the last two. A
    run at a constant rate counts as one of a half, a quarter, ... of its steps as well.
    """
    cells, rows = of.cells[of.cells["precision"].astype(str) == "float32"], list[dict[str, Any]]()
    for steps in _horizons(cells, of.metrics):
        so_far = of.metrics if steps is None else of.metrics[of.metrics["step"] <= steps]
        for runs in groups(final_losses(cells, so_far), (*OF_A_RULE, "rank")):
            tried, first = common_rates(runs), runs.iloc[0]
            losses = runs[runs["lr"].isin(tried)].groupby("lr")["loss"]
            mean = losses.mean().where(losses.count() == losses.size())
            if len(mean) > 1 and mean.notna().any():
                run = _setting(first, steps)
                row = {"source": source, "model": run.model, "rule": run.rule, "alpha": run.alpha}
                row |= {"optimizer": run.optimizer, "seeds": runs["seed"].nunique()}
                rows.append(row | run.facts() | placed(mean))
    return pd.DataFrame(rows)


def _horizons(cells: pd.DataFrame, metrics: pd.DataFrame) -> list[int | None]:
    """None, for the whole runs, and of runs at a constant rate the halves with a held-out loss."""
    found: list[int | None] = [None]
    if len(cells) and cells["steps"].nunique() == 1 and _schedules(cells) == {"constant"}:
        counts = metrics.dropna(subset="eval_loss").groupby("step").size()
        steps = int(cells["steps"].iloc[0]) // 2
        while steps >= FEWEST and counts.get(steps, 0) == counts.max():
            found.append(steps)
            steps //= 2
    return found


def _schedules(cells: pd.DataFrame) -> set[str]:
    """Studies that recorded none have the default."""
    none = pd.Series("constant", cells.index)
    return set(cells.get("schedule", none).astype(object).fillna("constant").astype(str))


def _setting(first: pd.Series, steps: int | None) -> Setting:
    rule, p, crossover = (first[name] for name in ("scaling", "exponent_p", "crossover"))
    ratio = first.get("loraplus_lr_ratio")
    return Setting(
        rank=int(first["rank"]),
        alpha=float(first["alpha"]),
        rule=f"{p:g}" if rule == scaling.POWER else str(rule),
        optimizer=str(first["optimizer"]),
        crossover=float(crossover),
        ratio=float(ratio) if ratio and ratio > 0 else 1.0,
        steps=int(steps or first["steps"]),
        model=short_model(str(first["model"])),
        batch=int(first["batch_size"] * first["accumulation"]),
        schedule="constant" if pd.isna(first.get("schedule")) else str(first["schedule"]),
    )


def placed(losses: "pd.Series[float]") -> dict[str, Any]:
    """``log_lr`` and ``edge`` of the lowest of ``losses``, by rate in ascending order."""
    lr = losses.index.to_numpy(float)
    best, logs = bottom(lr, losses.to_numpy(float)), np.log(lr)
    ends = {INSIDE: math.log(best.lr), LOWEST: logs[:2].mean(), HIGHEST: logs[-2:].mean()}
    return {"log_lr": float(ends[best.edge]), "edge": best.edge}


@dataclass(frozen=True)
class Advice:
    """``rate``: a learning rate or, if ``relative``, a factor on that of the run. ``rests``: on the
    rate of the ``run``, on best rates of the user's ``studies``, or on the ``law`` alone."""

    rate: Span
    rests: Literal["run", "studies", "law"]
    relative: bool = False


Known = Mapping[str, Any]
"""``law``: coefficients with their standard deviations. ``spread``: of coefficients between models
and studies, and ``scatter``, of a single rate. ``width``: by which intervals are widened, so that
90 % hold in the test. ``models``: levels of models by name."""


def _interval(
    predict: Callable[[Law], Any], known: Known, width: str, more: float
) -> tuple[float, float]:
    """What the law predicts, and half of its 90 % interval: from the errors of the coefficients,
    their spread, and ``more``."""
    law = {name: value for name, (value, _) in known["law"].items()}
    value, variance = float(predict(law)), more**2
    for name, (_, error) in known["law"].items():
        sd = math.hypot(error, known["spread"].get(name, 0.0))
        variance += (float(predict({**law, name: law[name] + sd})) - value) ** 2
    return value, WIDE * known["width"][width] * math.sqrt(variance)


def moved(old: Facts, new: Facts, log_lr: float, known: Known) -> tuple[float, float]:
    """The log of the best rate of ``new`` if that of ``old`` is ``log_lr``, and half of its
    interval."""

    def predict(law: Law) -> Any:
        return log_rate(law, new, off_level(law, old, log_lr))

    kind = "moved" if old["steps"] == new["steps"] else "steps"
    return _interval(predict, known, kind, math.sqrt(2) * known["spread"]["scatter"])


def alone(run: Facts, model: str, known: Known, has_size: bool = True) -> tuple[float, float]:
    """The log of the best rate of a run by the law alone, and half of its interval."""
    off, of_size = known["models"].get(model, 0.0), known["law"]["size"][0]
    noise = math.hypot(known["spread"]["scatter"], 0.0 if has_size else SIZE_SD * of_size)
    return _interval(lambda law: log_rate(law, run, off), known, "alone", noise)


def alike(optimizer: str) -> str:
    return ALIKE.get(optimizer, optimizer)


def _span(value: float, half: float) -> Span:
    return Span(*(math.exp(value + sign * half) for sign in (0, -1, 1)))


def advise(old: Setting, new: Setting, own: pd.DataFrame | None = None) -> list[Advice]:
    """The best rate of ``new``, by the strongest evidence first. ``own``: :func:`best_rates_of` the
    user's studies. Each of them predicts, and weighs by the inverse variance of its prediction."""
    found, facts, known = list[Advice](), new.facts(), committed()
    if own is not None:
        usable = (own["edge"] == INSIDE) & (own["optimizer"].map(alike) == alike(new.optimizer))
        rows = own[usable & ((own["model"] == new.model) | (not new.model))].to_dict("records")
        if each := [moved(row, facts, row["log_lr"], known) for row in rows]:
            values, halves = np.array(each).T
            value = float(np.average(values, weights=halves**-2))
            found.append(Advice(_span(value, halves.min()), "studies"))
    can_move = (old.model, alike(old.optimizer)) == (new.model, alike(new.optimizer))
    has_law = alike(new.optimizer) in HAVE_RATES
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


def parts(old: Setting, new: Setting) -> dict[str, float]:
    """The factor on the best rate of each difference, one after the other."""
    law = {name: value for name, (value, _) in committed()["law"].items()}
    found, run = dict[str, float](), old
    log_lr = math.log(old.lr) if old.lr else float(log_rate(law, old.facts()))
    for name in ("rank", "rule", "alpha", "ratio", "steps", "batch", "schedule"):
        changed = replace(run, **{name: getattr(new, name)})
        before, after = run.facts(), changed.facts()
        if before != after:
            then = float(log_rate(law, after, off_level(law, before, log_lr)))
            found[name] = math.exp(then - log_lr)
            log_lr = then
        run = changed
    return found


def gains(new: Setting) -> list[dict[str, Any]]:
    """``gap``: the loss at the highest rank less that at the lowest, each at its best rate, of the
    study of the nearest steps, and of one of the same model before it."""
    steps = new.steps or USUAL_STEPS
    rows = sorted(committed()["gains"], key=lambda row: abs(math.log(row["steps"] / steps)))
    same = [row for row in rows if row["model"] == new.model]
    return same[:1] + [row for row in rows[:1] if row not in same[:1]]


def log_output(run: Setting) -> float:
    """log M at the start: the change of a usual layer's output in a first step of size 1, up to a
    constant; of the loss under a spectral rule, whose closed form needs more of the layer."""
    if family(run.optimizer) == "spectral":
        return math.log(run.gamma * run.ratio)
    return math.log(move(run.rank, run.gamma, run.optimizer) * run.ratio)


def lost_in_bf16(run: Setting, lr: float) -> dict[int, float]:
    """By step, the share of the adapter's output that rounding loses under Adam, with the sizes of
    SmolLM2."""
    output = lr * math.exp(log_output(run))
    sizes = committed()["bf16"] if family(run.optimizer) == "sign" else {}
    return {int(step): float(swallowed(1.0, size * output)) for step, size in sizes.items()}
