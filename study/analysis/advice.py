"""Which learning rate belongs to a rank, a rule and an alpha, and on what the answer rests.

A step at the rate lr moves the adapter output by ``lr M`` (:func:`log_move`; the derivation is in
:mod:`study.analysis.rate_theory`). The best rate goes as ``M^-s``. Under sign-like and spectral
rules s is 1 while A hardly moves and 1/2 once it has moved far. Under linear rules s is 1. There
are four kinds of evidence, the strongest first (:func:`rest`):

- **measured**: the best rates of a study of the user's own, or of a committed study on the same
  model. They are interpolated in log rank between ranks of the same rule and alpha, and otherwise
  in log M. Beyond them s is taken as 3/4, from 1/2 to 1;
- **exponent**: the rate that the user has, times the growth of the best rate with the rank that a
  study measured under the same rule;
- **theory**: the rate that the user has, times ``M^-s``;
- **others**: the best rates of 35 models in a sweep that others ran, for a user without a rate.

The best rate falls with the number of steps as ``steps^-h``, with :data:`HORIZON` from the
committed studies. ``evidence.json`` holds the committed evidence; ``docs/evidence.py`` writes it.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, Literal

import numpy as np
import pandas as pd

from study.analysis.grouping import groups
from study.analysis.losses import INSIDE, OF_A_RULE
from study.analysis.rates import NORMAL, best_rates, rate_transfer, rates_by_horizon
from study.theory import family
from study.theory.equivalence import ALIGNED, UNALIGNED, USUAL, growth
from study.theory.rounding import swallowed

TINY = "tiny"
SLOPES = (0.75, 0.5, 1.0)
"""s between studies and beyond their M: a middle and the two ends."""
FAR = 10.0
"""Numbers of steps that differ by more than this factor are not compared."""


@dataclass(frozen=True)
class Span:
    """A number with its lower and its upper end."""

    value: float
    low: float
    high: float

    def __iter__(self) -> Iterator[float]:
        return iter((self.value, self.low, self.high))

    def times(self, other: "Span") -> "Span":
        return Span(*(a * b for a, b in zip(self, other, strict=True)))

    def scaled(self, factor: float) -> "Span":
        return Span(*(each * factor for each in self))


ONE = Span(1.0, 1.0, 1.0)


def power(log: float, exponents: Sequence[float]) -> Span:
    """``exp(log * exponent)`` of three exponents, the middle first."""
    found = [math.exp(log * each) for each in exponents]
    return Span(found[0], min(found), max(found))


@dataclass(frozen=True)
class Setting:
    """A run. ``ratio``: B's learning rate over A's. ``lr``: that of A; None if it is not known.

    ``model``: a short name of its base, empty if not known. ``clip``: whether gradients are clipped
    by their norm. ``steps``: of the optimizer, and ``width``: of the hidden states; None if not
    known.
    """

    rank: int
    alpha: float
    p: float
    optimizer: str
    ratio: float = 1.0
    lr: float | None = None
    steps: int | None = None
    model: str = ""
    clip: bool = False
    width: int | None = None

    @property
    def gamma(self) -> float:
        return self.alpha * float(self.rank) ** -self.p


@dataclass(frozen=True)
class Best:
    """The best rate of one rule and rank in a study: the geometric mean over seeds.

    ``low`` to ``high``: its range over seeds, widened by the error of the grid of rates. ``edge``:
    whether the lowest or the highest rate that was tried was best for a seed. ``rho``: see
    :func:`study.analysis.rates.best_rates`.
    """

    source: str
    model: str
    optimizer: str
    p: float
    alpha: float
    ratio: float
    rank: int
    steps: int
    seeds: int
    lr: float
    low: float
    high: float
    edge: str = ""
    rho: float | None = None

    @property
    def setting(self) -> Setting:
        return Setting(self.rank, self.alpha, self.p, self.optimizer, self.ratio)


@dataclass(frozen=True)
class Law:
    """The exponent of the best rate with the rank, and its interval (``rate_transfer``)."""

    source: str
    model: str
    optimizer: str
    p: float
    alpha: float | None
    steps: int
    seeds: int
    rank_min: int
    rank_max: int
    exponent: float
    low: float
    high: float


@dataclass(frozen=True)
class Evidence:
    """Best rates and exponents of one study, or of several."""

    bests: Sequence[Best] = ()
    laws: Sequence[Law] = ()


@dataclass(frozen=True)
class Basis:
    """One answer, and what it rests on.

    ``factor``: that on the rate of the run that is asked about; None if the answer is absolute.
    ``rate``: the learning rate; None if it is a factor on one that is not known.
    """

    kind: Literal["measured", "exponent", "theory", "yours", "others"]
    source: str
    rate: Span | None
    factor: Span | None
    exponent: Span | None = None
    model: str = ""
    ranks: tuple[int, int] | None = None
    steps: int | None = None
    seeds: int | None = None
    alpha: float | None = None
    inside: bool = True


def committed() -> dict[str, Any]:
    """The evidence of the committed studies: the content of ``evidence.json``."""
    text = (files("study.analysis") / "evidence.json").read_text()
    return dict(json.loads(text))


def committed_evidence() -> Evidence:
    found = committed()
    return Evidence([Best(**row) for row in found["bests"]], [Law(**row) for row in found["laws"]])


def study_evidence(
    cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame, source: str
) -> Evidence:
    """The best rates of a study at each horizon, and their exponents at the last one."""
    rates = rates_by_horizon(cells, metrics, probes)
    if rates.empty:
        rates = best_rates(cells, metrics, probes)
        rates = rates.assign(horizon=rates["steps"]) if len(rates) else rates
    if rates.empty:
        return Evidence()
    bests = [_best(rows, source) for rows in groups(rates, ["horizon", *OF_A_RULE, "rank"])]
    last = int(rates["horizon"].max())
    transfers = rate_transfer(rates[rates["horizon"] == last].drop(columns="horizon"))
    laws = [
        _law({str(name): value for name, value in row.items()}, source, last)
        for row in transfers.to_dict("records")
        if math.isfinite(row["exponent"])
    ]
    return Evidence(bests, laws)


def _law(row: Mapping[str, Any], source: str, steps: int) -> Law:
    has_interval = math.isfinite(row["ci_low"])  # two ranks of one seed have none
    ends = ("ci_low", "ci_high") if has_interval else ("exponent", "exponent")
    return Law(
        *(source, str(row["model"]), str(row["optimizer"]), float(row["exponent_p"])),
        *(float(row["alpha"]), steps, int(row["seeds"])),
        *(int(row["rank_min"]), int(row["rank_max"])),
        *(float(row[name]) for name in ("exponent", *ends)),
    )


def _best(rows: pd.DataFrame, source: str) -> Best:
    first, logs = rows.iloc[0], np.log(rows["best_lr"].to_numpy(float))
    off = NORMAL * float(rows["grid_sd"].fillna(0.0).mean())
    edges = [edge for edge in rows["edge"] if edge != INSIDE]
    ratio, rho = float(first.get("loraplus_lr_ratio", 1.0)), float(rows["rho"].median())
    return Best(
        *(source, str(first["model"]), str(first["optimizer"]), float(first["exponent_p"])),
        *(float(first["alpha"]), 1.0 if math.isnan(ratio) else ratio, int(first["rank"])),
        *(int(first["horizon"]), len(rows), math.exp(logs.mean())),
        *(math.exp(logs.min() - off), math.exp(logs.max() + off)),
        edge=edges[0] if edges else "",
        rho=None if math.isnan(rho) else rho,
    )


# Theory.


def log_move(run: Setting, layers: Any = USUAL) -> float:
    """log M of a run: what a first step of size 1 moves the adapter output by, up to a constant.

    Muon's is that of torch's factor for the shape of a matrix (:mod:`study.theory.spectral`).
    """
    kind = family(run.optimizer)
    if kind == "spectral":
        return math.log(run.gamma * run.ratio)
    grown = growth("adapter_out", (1, run.rank), (1.0, run.gamma), run.optimizer, layers=[layers])
    return math.log(grown * run.ratio)


def theory(old: Setting, new: Setting) -> Span:
    """The factor on the best rate from one run to another."""
    if family(old.optimizer) != "linear":
        return power(log_move(old) - log_move(new), SLOPES)
    logs = [log_move(old, x) - log_move(new, x) for x in (USUAL, ALIGNED, UNALIGNED)]
    if old.clip:  # the gradient that is divided out goes as gamma sqrt(r)
        norms = [math.log(run.gamma * math.sqrt(run.rank)) for run in (new, old)]
        clipped = [log + norms[0] - norms[1] for log in logs]
        logs = [(logs[0] + clipped[0]) / 2, *logs, *clipped]
    found = [math.exp(log) for log in logs]
    return Span(found[0], min(found), max(found))


def after(steps: int, new_steps: int | None) -> Span:
    """The factor on the best rate from one number of steps to another; 1 if it is not known."""
    if new_steps is None:
        return ONE
    return power(math.log(steps / new_steps), committed()["horizon"])


# Measured.


def measured(new: Setting, bests: Sequence[Best]) -> Basis | None:
    """The best rate of ``new`` by the best rates of one study. None without those of its optimizer
    inside their grid."""
    here = [best for best in bests if best.optimizer == new.optimizer and not best.edge]
    nearest = {
        (best.p, best.alpha, best.ratio, best.rank): best
        for best in sorted(here, key=lambda best: -_distance(best.steps, new.steps))
    }
    points = list(nearest.values())
    rule = [b for b in points if (b.p, b.alpha, b.ratio) == (new.p, new.alpha, new.ratio)]
    ranks = [best.rank for best in rule]
    of_rule = bool(rule) and min(ranks) <= new.rank <= max(ranks)
    if not points:
        return None
    if of_rule:
        points, places, at = rule, [math.log(rank) for rank in ranks], math.log(new.rank)
    else:
        places, at = [log_move(best.setting) for best in points], log_move(new)
    x, order = np.array(places), np.argsort(places)
    rates = [Span(b.lr, b.low, b.high).times(after(b.steps, new.steps)) for b in points]
    logs = np.log([[*rate] for rate in rates])[order]
    inside = float(np.clip(at, x.min(), x.max()))
    found = [math.exp(np.interp(inside, x[order], column)) for column in logs.T]
    slopes = (1.0, 1.0, 1.0) if family(new.optimizer) == "linear" else SLOPES
    first = points[int(np.argmin(np.abs(x - at)))]
    ranks = [best.rank for best in points]
    return Basis(
        *("measured", first.source, Span(*found).times(power(inside - at, slopes)), None),
        model=first.model,
        ranks=(min(ranks), max(ranks)),
        steps=first.steps,
        seeds=first.seeds,
        alpha=first.alpha,
        inside=of_rule or math.isclose(inside, at),
    )


def _distance(steps: int, wanted: int | None) -> float:
    """Between numbers of steps; the longest is nearest to an unknown one."""
    return -steps if wanted is None else abs(math.log(steps / wanted))


def exponent(old: Setting, new: Setting, laws: Sequence[Law]) -> list[Basis]:
    """The rate of ``old`` moved to the rank of ``new`` by each law of its rule, the nearest first.

    The nearest law has the model, then the optimizer, then the alpha of the run. Laws of AdamW
    stand for every sign-like rule.
    """
    kind = family(new.optimizer)
    rows = [
        law
        for law in laws
        if math.isclose(law.p, new.p, abs_tol=1e-9) and family(law.optimizer) == kind
        if law.optimizer == new.optimizer or kind == "sign"
    ]

    def far(law: Law) -> tuple[bool, bool, float]:
        off = abs(math.log(law.alpha / new.alpha)) if law.alpha else math.log(4)
        unlike = law.model != new.model
        return unlike, law.optimizer != new.optimizer, off + math.log(4) * (law.model == TINY)

    # The alpha of the new run at the rank of the old one need not be that of the old run.
    start = replace(new, rank=old.rank)
    by_alpha = theory(old, start)
    found = []
    for law in sorted(rows, key=far):
        grown = power(math.log(new.rank / old.rank), (law.exponent, law.low, law.high))
        factor = grown.times(by_alpha)
        ends = sorted((old.rank, new.rank))
        found.append(
            Basis(
                *("exponent", law.source, _rate(old, factor), factor),
                exponent=Span(law.exponent, law.low, law.high),
                model=law.model,
                ranks=(law.rank_min, law.rank_max),
                steps=law.steps,
                seeds=law.seeds,
                alpha=law.alpha,
                inside=law.rank_min <= ends[0] and ends[1] <= law.rank_max,
            )
        )
    return found


def _rate(old: Setting, factor: Span) -> Span | None:
    return None if old.lr is None else factor.scaled(old.lr)


def others(new: Setting) -> Basis | None:
    """The best rates of a sweep that others ran, at M of the new run. None but for Adam."""
    if not new.optimizer.startswith("adam"):
        return None
    rows = [Best(**row) for row in committed()["others"]]
    found = measured(replace(new, optimizer=rows[0].optimizer), rows)
    return found and replace(found, kind="others")


def rest(old: Setting, new: Setting, own: Evidence | None, known: Evidence) -> list[Basis]:
    """What the rate of ``new`` can rest on, the strongest first. The first with a rate is pasted.

    ``own``: a study of the user's. Its rates count as they are if its model is that of the run;
    otherwise only its exponents do. ``known``: the committed studies. Best rates of another number
    of steps than that of the run come after exponents, if the number is not known.
    """
    found: list[Basis | None] = []
    moves = new.rank != old.rank
    for evidence, is_own in ((own or Evidence(), True), (known, False)):
        bests = [best for best in evidence.bests if _is_near(best, new, is_own)]
        of_rank = exponent(old, new, evidence.laws) if moves else []
        both = [measured(new, bests), _widened(of_rank) if of_rank else None]
        found += reversed(both) if new.steps is None and old.lr is not None and moves else both
    if (new.rank, new.p, new.alpha) != (old.rank, old.p, old.alpha):
        factor = theory(old, new)
        found.append(Basis("theory", "theory", _rate(old, factor), factor))
    elif old.lr is not None:
        found.append(Basis("yours", "yours", Span(old.lr, old.lr, old.lr), ONE))
    found.append(others(new))
    bases = [basis for basis in found if basis is not None]
    return sorted(bases, key=lambda basis: basis.rate is None)


def _is_near(best: Best, new: Setting, is_own: bool) -> bool:
    """Whether a best rate says something of the run: it has the model and about its steps."""
    if is_own:
        return new.model in ("", best.model)
    is_as_long = new.steps is not None and abs(math.log(best.steps / new.steps)) <= math.log(FAR)
    return best.model == new.model and is_as_long


def _widened(laws: Sequence[Basis]) -> Basis:
    """The nearest law, with a range that holds the values of all laws of its rule."""
    first = laws[0]
    assert first.factor is not None
    values = [basis.factor.value for basis in laws if basis.factor]
    factor = Span(
        first.factor.value, min(first.factor.low, *values), max(first.factor.high, *values)
    )
    rate = first.rate and factor.scaled(first.rate.value / first.factor.value)
    return replace(first, factor=factor, rate=rate)


# Motion of A, and bf16.


def expected_rho(run: Setting, lr: float) -> float | None:
    """rho = |dA x| / |A0 x| at the end of a run under AdamW; None if its steps or width are not
    known. In the committed studies it is 0.04 to 0.09 times width, rate and steps."""
    if run.steps is None or run.width is None or family(run.optimizer) != "sign":
        return None
    return float(committed()["rho"]) * run.width * lr * run.steps


def lost_in_bf16(run: Setting, lr: float) -> list[tuple[int, float]]:
    """The share of the adapter's output that rounding takes: pairs of a step and a share.

    For an output that is added to a rounded one. Adapter and layer have the sizes of SmolLM2 after
    as many steps under AdamW. Empty for other families.
    """
    if family(run.optimizer) != "sign":
        return []
    move = lr * math.exp(log_move(run))
    return [
        (int(step), float(swallowed(1.0, size * move)))
        for step, size in committed()["bf16"].items()
    ]
