"""A regression of best learning rates on rank and gamma, with a level for every group, such as a
model.

A best rate at the edge of the rates tried is only bounded, and enters the likelihood with the
probability of lying beyond: without such ranks, the law would be that of the ranks that happen to
lie within.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.stats import norm

from study.analysis.fits import Floats, t_critical
from study.analysis.wording import interval_text

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


def r_sign_ends(rates: pd.DataFrame, found: Fit) -> np.ndarray:
    """r_sign of :func:`moved`, and the ends of its interval."""
    return np.exp([found.found[0], *bounds(rates, moved, found)])


def r_sign_text(rates: pd.DataFrame, found: Fit) -> str:
    """``24 [9, 103]``: :func:`r_sign_ends`."""
    return interval_text(*r_sign_ends(rates, found), places=0).replace("inf", "∞")


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
