"""Theory's interval for the exponent of the best learning rate with rank, and a fit of best rates.

By either of two theories, the best rate keeps a quantity the same at every rank. Near the init,
with steps of size ``lr``, it is

- the *descent*, the decrease of the loss in a step to first order: ``lr gamma r`` under sign-like
  rules, ``lr gamma^2 r`` under linear ones. Its slope is m = 1 - p, or 1 - 2p, at all ranks;
- the *output*, the change of the adapter's output in a step: ``lr`` times the curve of
  ``adapter_out``, such as ``gamma sqrt(r (r - 1 + r_sign))``, which bends at low rank. m is its
  slope over the ranks measured.

Studies support either (docs/best-rates.md), so the prediction is the interval between the two.

**The motion of A.** Under a sign-like rule A moves as well. With ``rho = |dA x| / |A0 x|``, both
grow as ``lr M(r) (1 + k rho)``, and rho is proportional to the rate (docs/derivations.md). So

    d log lr / d log r = -m (1 + k rho) / (1 + 2 k rho),    m = d log M / d log r

from ``-m`` at rho far below 1 to ``-m/2`` far above (muA, arXiv 2602.06204, Corollary 4.4).

**The fit** is a regression of log lr with a level for every group, such as a model. A best rate at
the edge of the rates tried is only bounded, and enters the likelihood with the probability of lying
beyond: without such ranks, the law would be that of the ranks that happen to lie within.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.stats import norm

from study.analysis.fits import Floats, t_critical
from study.analysis.grouping import gammas, local_p
from study.theory import Layer, curve, family, power_of_gamma, slope
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.quantities import FORWARD_OUT
from study.vocabulary.thresholds import LAST_PREDICTED_STEP

Numbers = TypeVar("Numbers", float, npt.NDArray[np.float64])

K = math.sqrt(math.pi / 2)
"""The motion of the output through ``dA``, in units of that through ``A0``, at rho = 1."""
OUTPUT = "log_output"
"""The column of ``rates`` with the log of the output that a step of size 1 moves."""
LARGE = 1e9
"""The number of features D, if it is unknown."""


def rate_exponent(m: float, rho: Numbers) -> Numbers:
    """``d log lr / d log r`` of the best rate at ``rho``. ``m``: see the module.

    >>> rate_exponent(0.86, 0.0), round(rate_exponent(0.86, 1e9), 3)
    (-0.86, -0.43)
    """
    return -m * (1 + K * rho) / (1 + 2 * K * rho)


def log_outputs(runs: pd.DataFrame, probes: pd.DataFrame) -> pd.Series:
    """:data:`OUTPUT` at each rank of the runs of one rule, up to a constant; without alignments for
    r_align = D."""
    ranks = np.unique(runs["rank"].to_numpy(float))
    first = runs.iloc[0]
    optimizer, init = str(first["optimizer"]), INITS.get(str(first["init"]))
    found = np.full(len(ranks), math.nan)
    # The law holds if A is drawn, with a variance independent of rank.
    if init is not None and init.drawn == "A" and init.q == 0 and optimizer in OPTIMIZERS:
        law: dict[str, Any] = {"step": 1, "optimizer": optimizer}
        place, layers = (FORWARD_OUT.site, "rms"), _layers(runs, probes, optimizer, init.kurtosis)
        curves = [curve(*place, ranks, **law, p=0.0, layer=layer) for layer in layers]
        powers = power_of_gamma(*place, **law) * np.log(gammas(first, ranks))
        found = np.mean(np.log(curves), axis=0) + powers
    return pd.Series(found, ranks, name=OUTPUT)


def _layers(
    runs: pd.DataFrame, probes: pd.DataFrame, optimizer: str, kurtosis: float
) -> list[Layer]:
    """The layers with their alignments: geometric means over the runs at the first step that has
    them. They do not depend on rank or rate there."""
    name = "r_sign" if family(optimizer) == "sign" else "r_align"
    mine = probes[probes["cell_id"].astype(str).isin(set(runs["cell_id"].astype(str)))]
    fans = mine["d_in"].dropna() if "d_in" in mine else pd.Series(dtype=float)
    D = float(fans.max()) if len(fans) and fans.max() > 0 else LARGE
    rows = pd.DataFrame()
    if name in mine:
        there = (mine["site"] == FORWARD_OUT.site) & (mine[name] > 0) & np.isfinite(mine[name])
        rows = mine[there & mine["step"].between(1, LAST_PREDICTED_STEP)]
    if rows.empty:
        unrelated = D * (math.pi / 2 if name == "r_sign" else 1)
        return [Layer(d_in=D, kurtosis=kurtosis, **{name: unrelated})]
    rows = rows[rows["step"] == rows["step"].min()]
    by = rows.assign(log=np.log(rows[name])).groupby(rows["layer"].astype(str))
    d_in = by["d_in"].first() if "d_in" in rows else by["log"].first() * math.nan
    return [
        Layer(d_in=fan if fan > 0 else LARGE, kurtosis=kurtosis, **{name: math.exp(log)})
        for fan, log in zip(d_in, by["log"].mean(), strict=True)
    ]


def slopes(outputs: pd.Series, rule: Any) -> tuple[float, float]:
    """m by the descent, and by the output over the ranks of ``outputs``; NaN without a
    prediction."""
    if len(outputs) < 2 or outputs.isna().any():
        return math.nan, math.nan
    ranks = outputs.index.to_numpy(float)
    law: dict[str, Any] = {"optimizer": rule["optimizer"], "p": local_p(rule, ranks)}
    descent = curve("adapter_update", "descent", ranks, step=0, **law)
    # The log is known up to a constant; centred, its exponential is near 1.
    return slope(descent, ranks), slope(np.exp(outputs - outputs.mean()), ranks)


def predicted_interval(outputs: pd.Series, rule: Any) -> tuple[float, float]:
    """The interval predicted for the exponent of the best rate at any rho; NaN as
    :func:`slopes`."""
    falls, optimizer = [-m for m in slopes(outputs, rule)], str(rule["optimizer"])
    if optimizer in OPTIMIZERS and family(optimizer) == "sign":
        falls += [fall / 2 for fall in falls]
    return min(falls), max(falls)


SIDES = {"": 0, "lowest": -1, "highest": 1}
"""The side of a best rate's ``edge`` on which the true one lies."""
Curve = Callable[[pd.DataFrame, Floats], Floats]
"""What log lr adds to its level, from the rows of a table of best rates and some parameters."""


class Fit(NamedTuple):
    """``cost``: -2 log likelihood. ``found``: the curve's parameters. ``scatter``: the standard
    deviation of log lr. ``levels``: by group."""

    cost: float
    found: Floats
    scatter: float
    levels: "pd.Series[float]"


def moved(rates: pd.DataFrame, found: Sequence[float] | Floats) -> Floats:
    """``log M^-s`` with ``M = gamma sqrt(r (r - 1 + r_sign))``. ``found``: log r_sign, and s (1/2
    without)."""
    s = found[1] if len(found) > 1 else 0.5
    rank, log_gamma = rates["rank"].to_numpy(float), np.log(rates["gamma"].to_numpy(float))
    return np.asarray(-s * (log_gamma + np.log(rank * (rank - 1 + np.exp(found[0]))) / 2))


def fit_rates(
    rates: pd.DataFrame, curve: Curve, start: Sequence[float], scatter: float | None = None
) -> Fit:
    """The likeliest levels, parameters of the curve and scatter. ``rates``: ``group``, ``log_lr``,
    ``edge``, and what it reads."""
    of_row, names = pd.factorize(rates["group"])
    y, side = rates["log_lr"].to_numpy(float), rates["edge"].map(SIDES).to_numpy(float)
    n, shifts = len(names), 1e-5 * np.eye(len(start))

    def cost(t: Floats) -> tuple[float, Floats]:
        own, sd = t[n : n + len(start)], math.exp(t[-1]) if scatter is None else scatter
        z = (y - t[:n][of_row] - curve(rates, own)) / sd
        beyond = norm.logcdf(-side * z)
        each = np.where(side == 0, norm.logpdf(z) - math.log(sd), beyond)
        slope = np.where(side == 0, z, side * np.exp(norm.logpdf(z) - beyond))
        turns = [(curve(rates, own + d) - curve(rates, own - d)) / 2e-5 for d in shifts]
        parts = [np.bincount(of_row, slope) / sd, [slope @ turn / sd for turn in turns]]
        of_scatter = [slope @ z - (side == 0).sum()] if scatter is None else []
        return -2 * float(each.sum()), -2 * np.concatenate([*parts, of_scatter])

    levels = (rates["log_lr"] - curve(rates, np.array(start))).groupby(of_row).mean()
    first = [*levels, *start, *([-2.0] if scatter is None else [])]
    done = minimize(cost, first, jac=True, method="BFGS", tol=1e-4)
    sd = math.exp(done.x[-1]) if scatter is None else scatter
    return Fit(float(done.fun), done.x[n : n + len(start)], sd, pd.Series(done.x[:n], names))


def bounds(
    rates: pd.DataFrame, curve: Curve, best: Fit, scatter: float | None = None
) -> tuple[float, float]:
    """The profile-likelihood interval of the curve's first parameter; infinite without an end.

    With many levels a fitted scatter is too small. The threshold of the likelihood ratio allows for
    it: exactly if the curve is linear and no rate is at an edge.
    """
    value, *others = best.found
    points = int((rates["edge"] == "").sum())
    df = points - len(best.levels) - len(best.found) if scatter is None else math.inf
    t2 = float(t_critical(df)) ** 2
    most = points * math.log1p(t2 / df) if scatter is None else t2

    def above(off: float) -> float:
        at = value + off
        there = fit_rates(rates, lambda rows, t: curve(rows, np.r_[at, t]), others, scatter)
        return there.cost - best.cost - most

    def end(sign: int) -> float:
        off = next((off for off in sign * 0.05 * 2.0 ** np.arange(9) if above(off) > 0), None)
        return sign * math.inf if off is None else value + float(brentq(above, 0, off))

    return end(-1), end(1)


def left_out(rates: pd.DataFrame, curve: Curve, start: Sequence[float]) -> pd.DataFrame:
    """By group: -2 log likelihood of its rates (``cost``) under the curve and scatter of the other
    groups, with its own level; and the first ``constant`` of that curve."""

    def judged(own: pd.DataFrame) -> "pd.Series[float]":
        others = fit_rates(rates[rates["group"] != own["group"].iloc[0]], curve, start)
        here = fit_rates(own, lambda rows, _: curve(rows, others.found), [], others.scatter)
        return pd.Series({"cost": here.cost, "constant": float(np.sum(others.found[:1]))})

    return pd.DataFrame(rates.groupby("group")[list(rates)].apply(judged))


def of_each(rates: pd.DataFrame, curve: Curve, start: Sequence[float]) -> pd.DataFrame:
    """By group the curve's first parameter from its rates alone, with its interval ``low``,
    ``high``, at the scatter that is likeliest if each group has its own."""
    groups = {str(name): own for name, own in rates.groupby("group")}

    def cost(sd: float) -> float:
        return sum(fit_rates(own, curve, start, sd).cost for own in groups.values())

    sd = float(minimize_scalar(cost, bounds=(0.01, 1), method="bounded").x)
    found = {name: fit_rates(own, curve, start, sd) for name, own in groups.items()}
    rows = [[one.found[0], *bounds(groups[name], curve, one, sd)] for name, one in found.items()]
    return pd.DataFrame(rows, list(found), ["value", "low", "high"])
