"""The law of the best rate, fitted to every best rate that is committed; its test; its figure.

A regression of the log best rate with a random level of every model and of every study, by
penalised least squares. A best rate at the edge of its grid enters with the probability of lying
beyond. The standard deviations of the random levels and of the scatter are those of expectation and
maximisation. The test predicts each study, ours or of others, from all other studies.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import least_squares, minimize
from scipy.stats import norm

from research.blocks import RESULTS, STUDIES
from research.external import others
from research.external import rates as external_rates
from research.rate_fits import SIDES
from study.analysis import advice
from study.analysis.advice import MIDDLE, WIDE
from study.analysis.fits import Floats
from study.analysis.law import SIZES, STEPS, Setting, log_rate
from study.analysis.rates import best_rates_of
from study.store.tables import load_measured

COOKBOOK = "tinker-cookbook"
ALPHA = 32.0
"""The alpha assumed for tinker-cookbook: that of LoRA Without Regret, by the same authors."""


class Coefficient(NamedTuple):
    """``mean``, ``sd``: before the data. ``about``: what it is. ``data``: what it is known from."""

    mean: float
    sd: float
    about: str
    data: str = "within and between studies"


BASE = "the level at a billion weights, 256 steps of 16 sequences, a constant rate"
COEFFICIENTS = {
    "base": Coefficient(-4.0, 10.0, BASE),
    "steps": Coefficient(0.0, 3.0, "the power of the steps"),
    "size": Coefficient(0.0, 3.0, "the power of the size of the model", "between models"),
    "batch": Coefficient(0.5, 0.3, "the power of the batch", "between studies, and within three"),
    "decay": Coefficient(0.7, 0.4, "a schedule that decays", "between studies"),
    "spectral": Coefficient(0.0, 5.0, "Muon instead of Adam", "one study of 8 steps"),
    "c": Coefficient(2.0, 3.0, "log c at 256 steps"),
    "c_steps": Coefficient(0.0, 3.0, "the power of the steps in c"),
    "rho": Coefficient(7.5, 5.0, "log(k ρ / η) at 256 steps, a billion weights"),
    "rho_size": Coefficient(0.2, 0.2, "the power of the size in ρ / η"),
    "rho_steps": Coefficient(0.3, 0.3, "the power of the steps in ρ / η"),
}
"""Two priors matter, because few studies vary them alone. The batch: from no change to the square
root of the batch, once A has moved far. A schedule that decays has about half the mean rate of a
constant one, so its rate is 1 to 4 times as high, while A hardly moves."""

FITTED = sorted(name for name, study in STUDIES.items() if study.get("law"))
Held = dict[str, float]
"""Coefficients that are not fitted, with their values."""


@cache
def best_rates() -> pd.DataFrame:
    """Every best rate: those of our studies, and those that others published (``is_theirs``).
    ``source``: the study. ``grid``: the standard deviation that a coarse grid adds to the log
    rate."""
    own = pd.concat([best_rates_of(load_measured(RESULTS / name), name) for name in FITTED])
    parts = [own.assign(is_theirs=False), published().assign(is_theirs=True)]
    return pd.concat(parts, ignore_index=True).fillna({"grid": 0.0, "data": ""})


def published() -> pd.DataFrame:
    """The best rates that others published. The file of tinker-cookbook has no alpha: :data:`ALPHA`
    is assumed."""
    swept = external_rates()[["group", "rank", "billions", "log_lr", "edge"]]
    swept = swept.rename(columns={"group": "model"}).astype({"rank": int})
    swept = swept.assign(source=COOKBOOK, alpha=ALPHA, steps=780, batch=128, schedule="")
    rows = []
    for row in pd.concat([swept, others()]).to_dict("records"):
        about = {name: row[name] for name in ("rank", "alpha", "steps", "batch", "schedule")}
        run = Setting(**about, rule="lora", optimizer="adamw").facts()
        run |= {"size": row["billions"] * 1e9, "rule": "lora", "optimizer": "adamw"}
        told = ("source", "model", "alpha", "log_lr", "edge", "data", "grid")
        rows.append({name: row[name] for name in told} | run)
    return pd.DataFrame(rows)


class Fit(NamedTuple):
    """``law``: the coefficients. ``error``: their standard deviations. ``spread``: that of a level
    between models and between studies, of other random effects, and of a single rate (``scatter``).
    ``levels``: of the models and of the sources. ``cost``: -2 log likelihood."""

    law: dict[str, float]
    error: dict[str, float]
    spread: dict[str, float]
    levels: dict[str, float]
    cost: float


RANDOM = {"model": "model", "source": "source", "steps": "source", "c": "source"}
"""The random effects: of a model and of a study on the level, and of a study on the slope in log
steps and on log c."""
EFFECTS, ROUNDS = ("model", "source", "steps"), 12
FIRST = {"model": 0.7, "source": 0.2, "steps": 0.1, "c": 0.7, "scatter": 0.2}
"""Their standard deviations, and that of a single rate, before the first round."""
SHIFT = 1e-7
"""Of a coefficient or a random effect, to compute a derivative."""


def slopes(
    of_rates: Callable[[Floats], Floats], x: Floats, free: int, codes: Sequence[Any]
) -> Floats:
    """The derivatives of the residuals of the rates by the ``free`` coefficients and by the random
    effects. ``codes``: the effect of each rate, by kind. A rate depends on one effect of each kind,
    so all effects of a kind need one difference."""
    counts = [len(set(code)) for code in codes]
    groups = np.concatenate([np.arange(free), free + np.repeat(np.arange(len(codes)), counts)])
    starts = free + np.cumsum([0, *counts])[: len(codes)]
    places = [*range(free), *(start + code for start, code in zip(starts, codes, strict=True))]
    at = of_rates(x)
    found = np.zeros((len(at), len(x)))
    for group, place in enumerate(places):
        moved = of_rates(x + SHIFT * (groups == group))
        found[np.arange(len(at)), place] = (moved - at) / SHIFT
    return found


def fit(rows: pd.DataFrame, held: Held, effects: Sequence[str] = EFFECTS) -> Fit:
    """The likeliest coefficients and random ``effects``. Their spread is fitted in at most
    :data:`ROUNDS`."""
    columns = {name: rows[name].to_numpy() for name in rows}
    y, side = rows["log_lr"].to_numpy(float), rows["edge"].map(SIDES).to_numpy(float)
    inside, free = side == 0, [name for name in COEFFICIENTS if name not in held]
    kinds, sds = list(effects), dict(FIRST)
    codes = {kind: pd.factorize(rows[RANDOM[kind]]) for kind in kinds}
    counts = [len(free), *(len(codes[kind][1]) for kind in kinds)]
    ends = np.cumsum(counts)
    means, errors = np.array([COEFFICIENTS[name][:2] for name in free]).T
    log_steps = np.log(columns["steps"] / STEPS)

    def parts(x: Floats) -> list[Floats]:
        return np.split(x, ends[:-1])

    def residuals(x: Floats) -> Floats:
        """In standard deviations: of the rates, the coefficients and the random effects."""
        own, *random = parts(x)
        of_row = {kind: u[codes[kind][0]] for kind, u in zip(kinds, random, strict=True)}
        law = {**held, **dict(zip(free, own, strict=True))}
        off = of_row.get("model", 0.0) + of_row.get("source", 0.0)
        off = off + of_row.get("steps", 0.0) * log_steps
        law["c"] = law["c"] + of_row.get("c", 0.0)
        z = (y - log_rate(law, columns, off)) / np.hypot(sds["scatter"], columns["grid"])
        beyond = np.sqrt(-2 * norm.logcdf(-side * z))  # of which half the square is -log P
        return np.concatenate([np.where(inside, z, beyond), (x - start) / scales()])

    def scales() -> Floats:
        """The standard deviations of the coefficients and of the random effects."""
        return np.concatenate([errors, np.repeat([sds[kind] for kind in kinds], counts[1:])])

    def jacobian(x: Floats) -> Floats:
        of_rates = slopes(lambda at: residuals(at)[: len(y)], x, len(free), of_kinds)
        return np.concatenate([of_rates, np.diag(1 / scales())])

    of_kinds = [codes[kind][0] for kind in kinds]
    start = np.concatenate([means, np.zeros(sum(counts[1:]))])
    x = start
    for _ in range(ROUNDS):
        found = least_squares(residuals, x, jacobian, x_scale="jac", xtol=1e-6, ftol=1e-7)
        x, hessian = found.x, found.jac.T @ found.jac
        covariance, old = np.linalg.inv(hessian), dict(sds)
        variances = parts(np.diag(covariance))[1:]
        z, jac = found.fun[: len(y)][inside], found.jac[: len(y)][inside]
        for kind, u, variance in zip(kinds, parts(x)[1:], variances, strict=True):
            sds[kind] = max(0.02, math.sqrt(np.mean(u**2 + variance)))
        used = np.sum(jac @ covariance * jac)
        sds["scatter"] *= math.sqrt(z @ z / (len(z) - used))  # that of most rates, without grid
        if all(abs(math.log(sds[name] / old[name])) < 0.01 for name in sds):
            break
    own, *random = parts(x)
    noise = np.hypot(sds["scatter"], columns["grid"])[inside]
    cost = 2 * found.cost + 2 * float(np.log(noise).sum())
    cost += np.linalg.slogdet(hessian[ends[0] :, ends[0] :])[1]
    cost += 2 * sum(n * math.log(sds[kind]) for kind, n in zip(kinds, counts[1:], strict=True))
    law = {**held, **dict(zip(free, map(float, own), strict=True))}
    of_each = dict(zip(free, np.sqrt(parts(np.diag(covariance))[0]), strict=True))
    levels = levels_of({kind: codes[kind][1] for kind in kinds}, random)
    return Fit(law, of_each, sds, levels, float(cost))


def levels_of(names: Mapping[str, Sequence[Any]], random: Sequence[Floats]) -> dict[str, float]:
    """The random levels of models and of studies, by name."""
    return {
        str(name): float(level)
        for (kind, own), levels in zip(names.items(), random, strict=True)
        if kind in ("model", "source")
        for name, level in zip(own, levels, strict=True)
    }


def known(found: Fit) -> dict[str, Any]:
    """A fit as ``study advise`` reads it, with intervals as they are before the test."""
    base = math.hypot(found.spread["model"], found.spread["source"])
    spread = {"base": base, **{name: found.spread[name] for name in ("steps", "c", "scatter")}}
    law = {name: [value, found.error.get(name, 0.0)] for name, value in found.law.items()}
    models = {name: found.levels[name] for name in SIZES if name in found.levels}
    return {"law": law, "spread": spread, "width": dict.fromkeys(WIDTHS, 1.0), "models": models}


def pairs(own: pd.DataFrame) -> Iterator[tuple[str, int, int]]:
    """Two best rates inside their grids that differ in one thing: the kind, and their indices."""
    inside = own[own["edge"] == ""].sort_values(["steps", "rank", "rule", "alpha"])
    kinds = ("rank", "rule or alpha", "steps", "batch")
    rows = inside[["rank", "rule", "alpha", "steps", "batch", "data", "model", "decay"]]
    for one, other in combinations(rows.itertuples(), 2):
        is_fixed = one.rule == "lora" and one.alpha / one.rank == other.alpha / other.rank
        same_rule = one.rule == other.rule and (one.alpha == other.alpha or is_fixed)
        same = [one.rank == other.rank, same_rule]
        same += [one.steps == other.steps, one.batch == other.batch]
        about = [(run.data, run.model, run.decay) for run in (one, other)]
        if sum(same) == 3 and about[0] == about[1]:
            kind = kinds[same.index(False)]
            yield DECAYING if kind == "steps" and one.decay else kind, one.Index, other.Index


HELD = 0.9
DECAYING = "decaying steps"
KINDS = {
    "rank": "between two ranks",
    "rule or alpha": "between two rules or alphas",
    "steps": "between two numbers of steps, constant rate",
    DECAYING: "between two numbers of steps, schedule that decays",
    "batch": "between two batches",
    "alone": "a rate, without one of its study",
}
"""What the law is asked for, as tables name it."""
WIDTHS = ("moved", "steps", "alone", "seen")
"""Intervals are widened apart for a ratio at equal steps and batch, another ratio, a rate, and a
rate of a model that the law has seen in another study, as it has those of our studies."""


@cache
def without(source: str) -> dict[str, Any]:
    """What the command would know without a study."""
    rows = best_rates()
    return known(law_of(rows[rows["source"] != source]))


@cache
def test(keeps: bool) -> dict[str, pd.DataFrame]:
    """Each study predicted from the others, by the width of its intervals. ``keeps``: as
    ``study advise`` does, or by the law alone (:func:`study.analysis.advice.moved`)."""
    studies = best_rates().groupby("source")
    found = pd.concat(predicted(own, without(str(name)), keeps) for name, own in studies)
    kinds = {"steps": "steps", DECAYING: "steps", "batch": "steps", "alone": "alone"}
    part = found["kind"].map(kinds).fillna("moved")
    parts = dict(iter(found.groupby(part.mask((part == "alone") & ~found["is_theirs"], "seen"))))
    parts["alone"] = pd.concat(by_distance(parts["alone"]))
    return {name: widened(parts[name].reset_index(drop=True)) for name in WIDTHS}


def predicted(own: pd.DataFrame, of_others: Mapping[str, Any], keeps: bool) -> pd.DataFrame:
    """Ratios of two best rates of a study, and its best rates alone. ``value`` and ``half``: of the
    prediction. ``measured``: what it should be. ``keeps``: see :func:`test`."""
    rows, at = list[dict[str, Any]](), {index: dict(row) for index, row in own.iterrows()}

    def add(kind: str, value: float, half: float, measured: float, *runs: dict[Any, Any]) -> None:
        about = {name: runs[0][name] for name in ("source", "is_theirs")} | {"kind": kind}
        about |= {name: runs[0][name] for name in MIDDLE}
        about["half"] = math.hypot(half, WIDE * math.hypot(*(run["grid"] for run in runs)))
        rows.append(about | {"value": value, "measured": measured})

    for kind, one, other in pairs(own):
        start = at[one]["log_lr"]
        value, half = advice.moved(at[one], at[other], start, of_others, keeps)
        add(kind, value - start, half, at[other]["log_lr"] - start, at[one], at[other])
    for row in at.values():
        if row["edge"] == "":
            value, half = advice.alone(row, row["model"], of_others)
            add("alone", value, half, row["log_lr"], row)
    return pd.DataFrame(rows)


NEAREST = 0.4
"""The least error of a rate alone: half of the published sweeps of 0.6 to 8 billion weights are
off by a factor of 1.3 or more."""


def distance_of(table: pd.DataFrame) -> dict[str, float]:
    """How the error of a rate alone grows with size and steps (:func:`advice.error_at`): the
    likeliest normal distributions of the errors of published rates. Each study counts once."""
    off = (table["value"] - table["measured"]).to_numpy(float)
    weights = 1 / table.groupby("source")["half"].transform("size").to_numpy(float)
    columns = {name: table[name].to_numpy(float) for name in MIDDLE}

    def cost(logs: Floats) -> float:
        names = dict(zip(("near", *MIDDLE), np.exp(logs), strict=True))
        error = advice.error_at(columns, names)
        return float(weights @ (np.log(error) + (off / error) ** 2 / 2))

    bounds = [(math.log(NEAREST), None), (None, None), (None, None)]
    found = minimize(cost, np.log([0.4, 0.2, 0.2]), method="Nelder-Mead", bounds=bounds).x
    return dict(zip(("near", *MIDDLE), map(float, np.exp(found)), strict=True))


def by_distance(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The rates alone of each published study, with intervals by the errors of all others."""
    for source, own in table.groupby("source"):
        error = advice.error_at(own, distance_of(table[table["source"] != source]))
        yield own.assign(half=WIDE * error)


def width(table: pd.DataFrame) -> float:
    """By which intervals must be widened to hold 90 % of the values of our studies, and 90 % of
    those that others published. Each study counts once."""
    return max(_width(own) for _, own in table.groupby("is_theirs"))


def _width(table: pd.DataFrame) -> float:
    off = ((table["value"] - table["measured"]).abs() / table["half"]).sort_values()
    weights = 1 / table.groupby("source")["half"].transform("size")
    share = weights[off.index].cumsum() / weights.sum()
    return float(off[share >= HELD].iloc[0])


def widened(table: pd.DataFrame) -> pd.DataFrame:
    """``off``: the error in log rate. ``holds``: whether the interval holds the value, with the
    width that all other studies ask for."""
    off, half = (table["value"] - table["measured"]).abs(), table["half"]
    others = {name: width(table[table["source"] != name]) for name in table["source"].unique()}
    holds = off <= half * table["source"].map(others)
    return table.assign(off=off, holds=holds)


@cache
def law() -> Fit:
    return law_of(best_rates())


def law_of(rows: pd.DataFrame) -> Fit:
    """The fit with one c for all studies; its spread is that around this fit. With a random c the
    mean c would be that of the studies, most of which are short."""
    found = fit(rows, {})
    around = fit(rows, {name: found.law[name] for name in ("c", "c_steps")}, [*RANDOM])
    return found._replace(spread=around.spread)
