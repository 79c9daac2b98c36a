"""The learning rate for a rank, a rule and an alpha, and the evidence for it (docs/choose.md).

A step at the rate lr lowers the loss by ``lr D`` (:func:`log_descent`), and moves the adapters'
output by ``lr M`` (:func:`log_output`). The best rate is between ``D^-s`` and ``M^-s``. Under SGD
s is 1. Under others it falls from 1, while A hardly moves, to 1/2.
``advice.json`` holds what is committed; ``docs/evidence.py`` writes it.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from operator import itemgetter
from typing import Any, Literal

import numpy as np
import pandas as pd

from study.analysis.grouping import groups
from study.analysis.losses import INSIDE, OF_A_RULE
from study.analysis.rate_theory import rate_exponent
from study.analysis.rates import NORMAL, best_rates, rate_transfer, rates_by_horizon
from study.store import StudyTables
from study.theory import family
from study.theory.equivalence import descent, move
from study.theory.rounding import swallowed
from study.vocabulary.scaling import RULES

SLOPES = (0.75, 0.5, 1.0)
"""s if rho is not known: a middle and the two ends."""
FAR = 10.0
"""Best rates count for a run whose number of steps differs by at most this factor."""


@dataclass(frozen=True)
class Span:
    value: float
    low: float
    high: float

    def __iter__(self) -> Iterator[float]:
        return iter((self.value, self.low, self.high))

    def times(self, other: "Span") -> "Span":
        return Span(*(a * b for a, b in zip(self, other, strict=True)))


ONE = Span(1.0, 1.0, 1.0)


def power(log: float, exponents: Sequence[float]) -> Span:
    """``exp(log * exponent)`` of three exponents, the middle first."""
    found = [math.exp(log * each) for each in exponents]
    return Span(found[0], min(found), max(found))


@dataclass(frozen=True)
class Setting:
    """A run; None and empty names are unknown. ``ratio``: B's learning rate over A's, which ``lr``
    is. ``width``: of the hidden states. ``batch``: examples of an optimizer step."""

    rank: int
    alpha: float
    p: float
    optimizer: str
    ratio: float = 1.0
    lr: float | None = None
    steps: int | None = None
    model: str = ""
    width: int | None = None
    batch: int | None = None
    epochs: float | None = None
    schedule: str = ""

    @property
    def rule(self) -> str:
        """As a value of ``adapter.scaling``."""
        return next((name for name, rule in RULES.items() if rule.p == self.p), f"{self.p:g}")

    @property
    def gamma(self) -> float:
        return self.alpha * float(self.rank) ** -self.p

    @property
    def rho(self) -> float | None:
        """|dA x| / |A0 x| at the end: about a constant times width, rate and steps."""
        if not (self.lr and self.steps and self.width) or family(self.optimizer) != "sign":
            return None
        return float(committed()["rho"]) * self.width * self.lr * self.steps


@dataclass(frozen=True)
class Measured:
    """Where something was measured. ``rho``: see :func:`study.analysis.rates.best_rates`."""

    source: str
    model: str
    optimizer: str
    p: float
    alpha: float | None
    steps: int
    seeds: int
    ranks: Sequence[int]
    low: float
    high: float
    rho: float | None


@dataclass(frozen=True)
class Best(Measured):
    """The best rate of one rule and rank in a study: the geometric mean over seeds, and its range
    with the error of the grid. ``edge``: whether an extreme of the rates was best for a seed."""

    ratio: float
    lr: float
    edge: str


@dataclass(frozen=True)
class Law(Measured):
    """The exponent of the best rate with the rank. ``ranks``: the ends of its ``points`` ranks."""

    points: int
    exponent: float


@dataclass(frozen=True)
class Evidence:
    bests: Sequence[Best] = ()
    laws: Sequence[Law] = ()


@dataclass(frozen=True)
class Basis:
    """One answer, and its evidence. ``rate``: a learning rate or, if ``relative``, a factor on that
    of the run. ``inside``: whether the run is within the range of the measurements."""

    kind: Literal["measured", "exponent", "theory", "yours", "others"]
    rate: Span
    relative: bool = False
    exponent: Span | None = None
    where: Measured | None = None
    inside: bool = True


def committed() -> dict[str, Any]:
    return dict(json.loads((files("study.analysis") / "advice.json").read_text()))


def committed_evidence() -> Evidence:
    found = committed()
    return Evidence([Best(**row) for row in found["bests"]], [Law(**row) for row in found["laws"]])


def short_model(name: str) -> str:
    """The name by which studies on the same model are found."""
    last = name.rstrip("/").rpartition("/")[2].lower()
    starts = {"smollm2-135m": "smollm2", "gemma-3-270m": "gemma3"}
    return next((short for start, short in starts.items() if last.startswith(start)), last)


def study_evidence(of: StudyTables, source: str) -> Evidence:
    """The best rates of a study at each horizon, and their exponents at the last one."""
    rates = rates_by_horizon(of.cells, of.metrics, of.probes)
    if rates.empty and len(rates := best_rates(of.cells, of.metrics, of.probes)):
        rates = rates.assign(horizon=rates["steps"])
    if rates.empty:
        return Evidence()
    bests = []
    for rows in groups(rates, ["horizon", *OF_A_RULE, "rank"]):
        where = _where(rows.iloc[0], source, len(rows), rows["horizon"].iloc[0])
        logs = np.log(rows["best_lr"].to_numpy(float))
        off = NORMAL * float(rows["grid_sd"].fillna(0.0).mean())
        where |= {"low": math.exp(logs.min() - off), "high": math.exp(logs.max() + off)}
        where |= {"ranks": [int(rows["rank"].iloc[0])], "rho": _known(rows["rho"].median())}
        ratio = _known(rows.get("loraplus_lr_ratio", rows["rank"] * 0 + 1).iloc[0]) or 1.0
        edge = next((edge for edge in rows["edge"] if edge != INSIDE), INSIDE)
        bests.append(Best(**where, ratio=ratio, lr=math.exp(logs.mean()), edge=edge))
    laws, last = [], rates["horizon"].max()
    for _, row in rate_transfer(rates[rates["horizon"] == last].drop(columns="horizon")).iterrows():
        if math.isfinite(value := float(row["exponent"])):
            where = _where(row, source, row["seeds"], last)
            low, high = (_known(row[name]) for name in ("ci_low", "ci_high"))
            ends = (value if end is None else end for end in (low, high))  # two ranks and one seed
            where |= dict(zip(("low", "high"), ends, strict=True))
            where |= {"ranks": [int(row["rank_min"]), int(row["rank_max"])]}
            where |= {"points": int(row["ranks"])}
            where |= {"rho": _known(math.sqrt(row["rho_min"] * row["rho_max"]))}
            laws.append(Law(**where, exponent=value))
    return Evidence(bests, laws)


def _where(row: pd.Series, source: str, seeds: int, steps: int) -> dict[str, Any]:
    return {
        "model": short_model(str(row["model"])),
        "optimizer": str(row["optimizer"]),
        "source": source,
        "p": float(row["exponent_p"]),
        "alpha": float(row["alpha"]),
        "steps": int(steps),
        "seeds": int(seeds),
    }


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def log_descent(run: Setting) -> float:
    """log D: the decrease of the loss in a first step of size 1, up to a constant."""
    return math.log(descent(run.rank, run.gamma, run.optimizer) * run.ratio)


def log_output(run: Setting) -> float:
    """log M: the change of a usual layer's output in a first step of size 1, up to a constant."""
    if family(run.optimizer) == "spectral":  # the closed form needs more of the layer
        return log_descent(run)
    return math.log(move(run.rank, run.gamma, run.optimizer) * run.ratio)


def share(rho: float) -> float:
    return -rate_exponent(1.0, rho)


def theory(old: Setting, new: Setting) -> Span:
    """The factor on the best rate, between an equal descent and an equal output. rho counts as
    known within a factor of 3."""
    slopes = SLOPES if old.rho is None else [share(old.rho * x) for x in (1.0, 3.0, 1 / 3)]
    if family(old.optimizer) == "linear":
        slopes = (1.0, 1.0, 1.0)
    ends = [power(log(old) - log(new), slopes) for log in (log_descent, log_output)]
    middle = math.sqrt(ends[0].value * ends[1].value)
    return Span(middle, min(x.low for x in ends), max(x.high for x in ends))


def more_steps(old: Setting, new: Setting) -> float | None:
    """The steps of ``new`` over those of ``old``, or by epochs on the same data; None if that is
    not known, or more than the law of steps can say."""
    ratio = math.inf
    if old.steps and new.steps:
        ratio = new.steps / old.steps
    elif old.epochs and new.epochs and old.batch and new.batch:
        ratio = new.epochs / old.epochs * old.batch / new.batch
    return ratio if 1 / FAR <= ratio <= FAR else None


def parts(old: Setting, new: Setting) -> dict[str, Span]:
    """The factor on the best rate of each difference, one after the other, by theory and the law of
    steps."""
    found, run = {}, old
    for name in ("rank", "p", "alpha", "ratio"):
        changed = replace(run, **{name: getattr(new, name)})
        if changed != run:
            found[name] = theory(run, changed)
        run = changed
    ratio = more_steps(old, new)
    if ratio and ratio != 1:
        found["steps"] = power(-math.log(ratio), committed()["horizon"])
    return found


def measured(new: Setting, bests: Sequence[Best]) -> Basis | None:
    """The best rate of ``new`` from the best rates of a study inside its grid, if it has any:
    interpolated in log rank for its own rule and alpha, or else in log D between the other rules at
    the nearest rank, and scaled to its steps."""
    rules: dict[Any, dict[int, Best]] = {}
    for best in sorted(bests, key=lambda best: -unlike(best.steps, new.steps)):  # last: nearest
        if best.optimizer == new.optimizer and not best.edge:
            rules.setdefault((best.p, best.alpha, best.ratio), {})[best.ranks[0]] = best
    own = (new.p, new.alpha, new.ratio)
    if own in rules and min(rules[own]) <= new.rank <= max(rules[own]):
        rules = {own: rules[own]}
    points = sorted((_at_rank(new, list(of.values())) for of in rules.values()), key=itemgetter(0))
    if not points:
        return None
    at, x = log_descent(new), np.array([point[0] for point in points])
    inside = float(np.clip(at, x[0], x[-1]))
    rates = np.log([point[1] for point in points])
    found = Span(*(math.exp(np.interp(inside, x, y)) for y in rates.T))
    slopes = (1.0, 1.0, 1.0) if family(new.optimizer) == "linear" else SLOPES
    ranks = [rank for of_rank in rules.values() for rank in of_rank]
    where = points[int(np.argmin(np.abs(x - at)))][2]
    return Basis(
        "measured",
        found.times(power(inside - at, slopes)),
        where=replace(where, ranks=[min(ranks), max(ranks)]),
        inside=min(ranks) <= new.rank <= max(ranks) and math.isclose(inside, at),
    )


def _at_rank(new: Setting, bests: list[Best]) -> tuple[float, list[float], Best]:
    """Of one rule at the nearest rank that it has: log D, the best rate with its range after the
    steps of ``new``, and the nearest of ``bests``."""
    bests.sort(key=lambda best: best.ranks[0])
    ranks, h = [best.ranks[0] for best in bests], committed()["horizon"]
    logs = [math.log(best.steps / new.steps) if new.steps else 0.0 for best in bests]
    pairs = zip(bests, logs, strict=True)
    rates = np.array([[*Span(b.lr, b.low, b.high).times(power(log, h))] for b, log in pairs])
    rank = int(np.clip(new.rank, ranks[0], ranks[-1]))
    first = min(bests, key=lambda best: abs(math.log(best.ranks[0] / rank)))
    run = Setting(rank, first.alpha or 1, first.p, first.optimizer, first.ratio)
    at_rank = [math.exp(np.interp(math.log(rank), np.log(ranks), y)) for y in np.log(rates).T]
    return log_descent(run), at_rank, first


def unlike(steps: int, wanted: int | None) -> float:
    """How much numbers of steps differ; the longest is nearest to an unknown one."""
    return -steps if wanted is None else abs(math.log(steps / wanted))


def exponent(old: Setting, new: Setting, laws: Sequence[Law]) -> Basis | None:
    """The rate of ``old`` moved to the rank of ``new`` by the nearest law of its rule: in model,
    then optimizer, then rho or alpha. Theory corrects for a difference in rho. The range holds all
    laws of the rule."""
    start = replace(new, rank=old.rank)  # its alpha need not be that of the old run
    m = (log_descent(new) - log_descent(start)) / math.log(new.rank / old.rank)

    def moved(law: Law) -> float:
        return m * (share(law.rho) - share(old.rho)) if old.rho and law.rho else 0.0

    def far(law: Law) -> tuple[bool, bool, float]:
        off = math.log(law.alpha / new.alpha) if law.alpha else math.log(4)
        off = math.log(law.rho / old.rho) if old.rho and law.rho else off
        return law.model != new.model, law.optimizer != new.optimizer, abs(off)

    kind = family(new.optimizer)
    rows = [
        law
        for law in laws
        if math.isclose(law.p, new.p) and family(law.optimizer) == kind
        if law.optimizer == new.optimizer or kind == "sign"
    ]
    if not rows:
        return None
    first = min(rows, key=far)
    values = [law.exponent + moved(law) for law in rows]
    ends = (first.low + moved(first), first.high + moved(first))
    found = Span(first.exponent + moved(first), min(*values, *ends), max(*values, *ends))
    factor = power(math.log(new.rank / old.rank), [*found]).times(theory(old, start))
    factor = factor.times(parts(old, new).get("steps", ONE))
    low, high = sorted((old.rank, new.rank))
    inside = first.ranks[0] <= low and high <= first.ranks[1]
    return _times("exponent", old, factor, exponent=found, where=first, inside=inside)


def _times(kind: Any, old: Setting, factor: Span, **others: Any) -> Basis:
    lr = 1.0 if old.lr is None else old.lr
    return Basis(kind, factor.times(Span(lr, lr, lr)), relative=old.lr is None, **others)


def rest(old: Setting, new: Setting, own: Evidence | None, known: Evidence) -> list[Basis]:
    """The evidence for the rate of ``new``, the strongest first (docs/choose.md).

    ``own``: of the user's study. Rates count on the same model, at steps within a factor of
    :data:`FAR`; otherwise only exponents do. ``known``: of the committed studies.
    """
    found: list[Basis | None] = []
    can_move = (old.model, old.optimizer) == (new.model, new.optimizer)
    mine = [best for best in (own or Evidence()).bests if new.model in ("", best.model)]
    same = [best for best in known.bests if best.model == new.model and new.steps]
    for bests, laws in ((mine, (own or Evidence()).laws), (same, known.laws)):
        bests = [best for best in bests if unlike(best.steps, new.steps) <= math.log(FAR)]
        of_rank = exponent(old, new, laws) if can_move and new.rank != old.rank else None
        both = [measured(new, bests), of_rank]
        found += both if new.steps or old.lr is None or of_rank is None else both[::-1]
    if can_move and (different := parts(old, new)):
        factor = theory(old, new).times(different.get("steps", ONE))
        found.append(_times("theory", old, factor))
    elif can_move and old.lr is not None:
        found.append(_times("yours", old, ONE))
    rows = [Best(**row) for row in committed()["others"]]
    theirs = rows[0].optimizer
    if new.optimizer in (theirs, theirs.removesuffix("w")):  # with or without weight decay
        is_far = unlike(rows[0].steps, new.steps) > math.log(FAR)
        basis = measured(replace(new, optimizer=theirs, steps=None if is_far else new.steps), rows)
        found.append(basis and replace(basis, kind="others"))
    return sorted((basis for basis in found if basis), key=lambda basis: basis.relative)


def gains(new: Setting) -> list[dict[str, Any]]:
    """``gap``: the loss at the highest rank less that at the lowest, each at its best rate, of the
    nearest rule in the study of the nearest steps, and in one of the same model before it."""
    rows = sorted(committed()["gains"], key=lambda row: unlike(row["steps"], new.steps))
    rows.sort(key=lambda row: abs(row["p"] - new.p))
    same = [row for row in rows if row["model"] == new.model and row["p"] == rows[0]["p"]]
    return same[:1] + [row for row in rows[:1] if row not in same[:1]]


def lost_in_bf16(run: Setting, lr: float) -> dict[int, float]:
    """By step, the share of the adapter's output that rounding loses under Adam, with the sizes of
    SmolLM2."""
    moved = lr * math.exp(log_output(run))
    sizes = committed()["bf16"] if family(run.optimizer) == "sign" else {}
    return {int(step): float(swallowed(1.0, size * moved)) for step, size in sizes.items()}
