"""The answer of ``study advise`` as data: alpha and learning rate for a rank and a rule, what the
rank gains, and how sure that is (docs/choose.md).

``advice.json`` holds the law (:mod:`study.analysis.law`) and what else is known.
``research/evidence.py`` writes it. Nothing here imports pandas, because the command should start
fast.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from study.analysis.law import (
    SIZES,
    USUAL_SIZE,
    USUAL_STEPS,
    Facts,
    Law,
    Setting,
    log_rate,
    off_level,
)
from study.theory import family
from study.theory.rounding import swallowed

if TYPE_CHECKING:
    import pandas as pd

USUAL_RATE = 3e-4
"""Of a run with an optimizer whose best rates were not measured."""
SIZE_SD = 1.5
"""Of the log of the size of an unknown model."""
MIDDLE = {"size": 3e9, "steps": 500.0}
"""The median published sweep, in round numbers."""
WIDE = 1.645
"""Standard deviations of half a 90 % interval."""
FAR = 3.0
"""A rate is far off above this many times the law's, or outside of the law's interval."""
BEST_ALPHA, LEAST_RANK = 256.0, 16
"""The best alpha (gamma r) of the plane's studies, from this rank on (docs/alpha.md)."""
NEAR = 4.0
"""Steps and alphas of a study are near those of a run within this factor."""
COLLAPSED_RANK = 128
"""From this rank on a published run with rsLoRA and alpha = 2r collapsed at usual rates."""
BF16_MATTERS = 0.1
"""The share of an adapter's output that rounding may take."""


@dataclass(frozen=True)
class Span:
    """A number and the ends of its interval, which equal it if none is known."""

    value: float
    low: float
    high: float

    def __iter__(self) -> Iterator[float]:
        return iter((self.value, self.low, self.high))


def rounded(value: float) -> float:
    """With two significant digits."""
    return float(f"{value:.2g}")


def number(value: float) -> str:
    """Two significant digits, without a power of ten below a million."""
    return f"{rounded(value):.7g}"


@cache
def committed() -> dict[str, Any]:
    """What ``advice.json`` holds."""
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


def advise(old: Setting, new: Setting, own: "pd.DataFrame | None" = None) -> list[Advice]:
    """The best rate of ``new``, by the strongest evidence first. ``own``: :func:`best_rates_of` the
    user's studies. Each of them predicts, and weighs by the inverse variance of its prediction."""
    found, facts, known = list[Advice](), new.facts(), committed()
    if own is not None:
        usable = (own["edge"] == "") & (own["optimizer"] == new.optimizer)  # inside the grid
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


def lost_in_bf16(run: Setting, lr: float) -> dict[int, float]:
    """By step, the share of the adapter's output that rounding loses under Adam, with the sizes of
    SmolLM2."""
    output = lr * run.first_move
    return {step: float(swallowed(1.0, size * output)) for step, size in _sizes(run).items()}


def lost_at_end(run: Setting) -> float:
    """The share of the adapter's output that rounding loses after the last step of a run. From step
    10 on, outputs are taken to grow with the power of the steps that they have from 1 to 10."""
    sizes = _sizes(run)
    if not (sizes and run.lr):
        return 0.0
    power = math.log10(sizes[10] / sizes[1])
    size = sizes[10] * ((run.steps or USUAL_STEPS) / 10) ** power
    return float(swallowed(1.0, size * run.lr * run.first_move))


def _sizes(run: Setting) -> dict[int, float]:
    known = committed()["bf16"] if family(run.optimizer) == "sign" else {}
    return {int(step): float(size) for step, size in known.items()}


@dataclass(frozen=True)
class Answer:
    """What to set, and why.

    - ``run``: as it is; ``advice``: as it should be. Its ``lr`` is None if no rate is known;
    - ``rate``: the strongest evidence. Its interval holds the best rate with 90 %;
    - ``keeps``: whether ``advice`` has the rate of its file, which lies in the interval;
    - ``law``: the law's rate for the run as it is, if the rate of the run is far off;
    - ``collapse``: a published run of this rule that collapsed at such a rate;
    - ``alpha``: what the alpha of the run costs, if another one is advised;
    - ``elsewhere``: what is known of alpha, if it is kept because nobody measured this model;
    - ``gain``: the loss of a higher rank less that of a lower one, of the rule of the run;
    - ``lost``: the share of the adapter's output that bf16 takes at the end, if that matters;
    - ``evidence``: every answer, the strongest first.
    """

    run: Setting
    advice: Setting
    rate: Advice | None
    keeps: bool
    law: Span | None
    collapse: dict[str, Any] | None
    alpha: dict[str, Any] | None
    elsewhere: list[dict[str, Any]]
    gain: dict[str, Any] | None
    lost: float
    evidence: list[Advice]


def answer(
    old: Setting,
    new: Setting,
    own: "pd.DataFrame | None" = None,
    *,
    alpha: dict[str, Any] | None = None,
    is_free: bool = True,
    is_bf16: bool = False,
    is_covered: bool = True,
) -> Answer:
    """The answer for ``new``, from a run ``old``. ``new.lr``: the rate of the file that is changed.
    ``own``: as for :func:`advise`. ``alpha``: of :func:`with_best_alpha`. ``is_free``: whether
    nobody has chosen the alpha of ``new``. ``is_bf16``: whether outputs are rounded to bf16.
    ``is_covered``: whether the law was fitted to such runs. Of DPO, whose rates are lower, it knows
    ratios at most.
    """
    law = far_off(old) if own is None and is_covered else None
    evidence = [each for each in advise(old, new, own) if law is None or each.rests != "run"]
    rate = evidence[0] if evidence else None
    if rate and is_covered:
        rate = _with_interval(rate, new)
    lr = rate.rate.value if rate and not rate.is_relative else None
    keeps = False
    if rate and new.lr and law is None and rate.rests != "studies" and not rate.is_relative:
        keeps = rate.rate.low <= new.lr <= rate.rate.high
    advice = replace(new, lr=new.lr if keeps else lr and rounded(lr))
    lost = lost_at_end(advice) if is_bf16 else 0.0
    is_open = is_free and alpha is None and _has_low_alpha(new)
    return Answer(
        run=old,
        advice=advice,
        rate=rate,
        keeps=keeps,
        law=law,
        collapse=committed()["collapse"] if law and _collapses(old) else None,
        alpha=alpha,
        elsewhere=_known_of_alpha() if is_open else [],
        gain=gain(old, new),
        lost=lost if lost > BF16_MATTERS else 0.0,
        evidence=evidence,
    )


def by_law(run: Setting) -> Span | None:
    """The best rate of a run by the law alone."""
    same = replace(run, lr=None)
    return next((each.rate for each in advise(same, same) if each.rests == "law"), None)


def far_off(run: Setting) -> Span | None:
    """The law's rate, if that of the run lies above its interval or :data:`FAR` times above the
    rate; or below both its interval and the rate over :data:`FAR`, where a run only learns slowly.
    """
    law = by_law(run)
    if law is None or run.lr is None:
        return None
    lowest, highest = min(law.low, law.value / FAR), min(law.high, FAR * law.value)
    return None if lowest <= run.lr <= highest else law


def _with_interval(found: Advice, run: Setting) -> Advice:
    """The same rate. If it is that of an unchanged run, with the interval of the law alone."""
    value, low, high = found.rate
    law = by_law(run) if low == high and not found.is_relative else None
    return replace(found, rate=Span(value, law.low, law.high)) if law else found


def _collapses(run: Setting) -> bool:
    is_doubled = math.isclose(run.alpha, 2 * run.rank)
    return run.rule == "rslora" and is_doubled and run.rank >= COLLAPSED_RANK


def _has_low_alpha(run: Setting) -> bool:
    """Whether alpha, as gamma r, is less than half of the best one of the plane's studies."""
    is_sign = family(run.optimizer) == "sign"
    is_low = 2 * run.gamma * run.ratio * run.rank < BEST_ALPHA
    return is_sign and is_low and run.rank >= LEAST_RANK


def with_best_alpha(run: Setting) -> tuple[Setting, dict[str, Any] | None]:
    """The run with alpha 256, and the row of ``alphas`` on what a low alpha costs. Only for models
    on which it was measured in about as many steps, and was not zero; else the run as it is."""
    if not _has_low_alpha(run):
        return run, None
    steps = run.steps or USUAL_STEPS
    rows = [row for row in committed()["alphas"] if row["model"] == run.model]
    rows = [row for row in rows if steps / NEAR <= row["steps"] <= steps * NEAR]
    if not rows:
        return run, None

    def distance(row: Mapping[str, Any]) -> float:
        return abs(math.log(row["steps"] / steps)) + abs(math.log(row["rank"] / run.rank))

    row = min(rows, key=distance)
    if row["cost"][1] <= 0:
        return run, None
    unit = replace(run, rule="lora", alpha=BEST_ALPHA / run.ratio)
    return unit.under(run.rule), row


def _known_of_alpha() -> list[dict[str, Any]]:
    """What a low alpha costs at the highest rank of the largest model, and what others measured."""
    rows = committed()["alphas"]
    largest = max(
        rows, key=lambda row: (SIZES[row["model"]], row["rank"], row["seeds"] > 2, row["steps"])
    )
    return [largest, committed()["alphas_elsewhere"]]


def gain(old: Setting, new: Setting) -> dict[str, Any] | None:
    """A row of ``gains``: of the rule of both runs, about their alpha, and of two ranks that equal
    or enclose theirs. Of several, that of the nearest size, ranks and steps."""
    low, high = sorted((old.rank, new.rank))
    if low == high or old.rule != new.rule:
        return None
    steps, size = new.steps or USUAL_STEPS, new.size or USUAL_SIZE
    rows = [
        row
        for row in committed()["gains"]
        if row["rule"] == new.rule
        and row["ranks"][0] <= low
        and row["ranks"][1] >= high
        and new.alpha / NEAR <= row["alpha"] <= new.alpha * NEAR
    ]

    def distance(row: Mapping[str, Any]) -> tuple[float, float]:
        ranks = math.log(row["ranks"][1] / row["ranks"][0])
        of_size = abs(math.log(SIZES[row["model"]] / size))
        return of_size, ranks + abs(math.log(row["steps"] / steps))

    return min(rows, key=distance, default=None)
