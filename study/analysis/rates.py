"""Does the best learning rate of one rank do at another? Its exponent in the rank, beside what theory expects.

A sign-like step of size ``lr`` moves an adapter's output by ``gamma r lr`` while A stays near its init (rho = |dA x| /
|A0 x| << 1) and by ``gamma r lr^2`` once A's motion is what counts (rho >> 1). A best rate that keeps that size goes as
``r^-(1 - p)`` and ``r^-(1 - p)/2``: 0 under alpha/r, -1/2 to -1/4 under alpha/sqrt(r), -1 to -1/2 at a constant gamma.
The prediction is the interval between the two (its far end: muA, arXiv 2602.06204); ``rho`` says which end is nearer.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from study.analysis.final_losses import final_losses
from study.analysis.fits import Floats, Strands, fit_lines, t_critical
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import OPTIMIZERS

INSIDE, LOWEST, HIGHEST = "", "lowest", "highest"
"""``edge``: at which end of the rates tried the best one lies; the true best may lie outside."""

OF_A_RULE = ("setting", "scaling", "exponent_p", "alpha")


class Best(NamedTuple):
    """The bottom of a basin: its learning rate, the loss there, and at which edge of the rates tried it lies."""

    lr: float
    loss: float
    edge: str


def best_rates(cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """The best learning rate of every rule, rank and seed that was run at two or more: the curve's columns (``lr``
    aside), ``setting``, ``rank``, ``seed``, ``best_lr``, ``best_loss``, ``edge``, ``tried`` (how many rates), ``rho``
    (median over layers of A's motion at the last probed step of the run at the nearest rate; NaN: not recorded).
    """
    ends = final_losses(cells, metrics, probes)
    rho = _rho(probes)
    rows = []
    for _, basin in ends.groupby(
        [*OF_A_RULE, "rank", "seed"], dropna=False, observed=True, sort=False
    ):
        if basin["lr"].nunique() < 2 or not np.isfinite(basin["loss"]).any():
            continue
        found = bottom(basin["lr"].to_numpy(float), basin["loss"].to_numpy(float))
        nearest = (
            (np.log(basin["lr"]) - np.log(found.lr))
            .abs()
            .where(np.isfinite(basin["loss"]))
            .idxmin()
        )
        first = basin.iloc[0].drop(["lr", "loss", "cell_id", "gamma"]).to_dict()
        first |= {
            "best_lr": found.lr,
            "best_loss": found.loss,
            "edge": found.edge,
            "tried": basin["lr"].nunique(),
        }
        rows.append(first | {"rho": rho.get(str(basin.loc[nearest, "cell_id"]), np.nan)})
    return pd.DataFrame(rows)


def bottom(lr: Floats, loss: Floats) -> Best:
    """The bottom of one basin: the vertex of the parabola in log ``lr`` through the best rate and its two neighbours.

    NaN is a run that diverged: it bounds the rates that work, so its neighbour is no edge, but it has no place on a
    parabola; the best rate is then taken as it stands. At least one loss must be finite; rates must be distinct.
    """
    order = np.argsort(lr)
    x, y = np.log(lr[order]), loss[order]
    best = int(np.nanargmin(y))
    edge = LOWEST if best == 0 else HIGHEST if best == len(x) - 1 else INSIDE
    if edge or not np.isfinite(y[best - 1 : best + 2]).all():
        return Best(float(np.exp(x[best])), float(y[best]), edge)
    left, here, right = y[best - 1], y[best], y[best + 1]
    a, b = x[best - 1] - x[best], x[best + 1] - x[best]
    # y = here + c u + d u^2 through (a, left), (b, right); the middle is the least, so d >= 0.
    d = ((left - here) / a - (right - here) / b) / (a - b)
    c = (left - here) / a - d * a
    u = -c / (2 * d) if d > 0 else 0.0
    return Best(float(np.exp(x[best] + u)), float(here + c * u + d * u * u), edge)


def rate_transfer(rates: pd.DataFrame) -> pd.DataFrame:
    """The exponent of the best learning rate in the rank, one row per rule, from :func:`best_rates`' table.

    Per seed a line through the ranks whose best rate is no edge, then Student's t over seeds (one seed: over ranks):
    ``exponent``, ``ci_low``, ``ci_high``, ``interval``, ``seeds``, ``ranks``, ``rank_min``, ``rank_max``, ``edges``
    (optima at an edge, not in the fit), ``predicted_low``, ``predicted_high``, ``agrees`` (1: the intervals overlap,
    0: not, NaN: one is missing), ``rho_min``, ``rho_max`` over ranks. NaN exponent: fewer than two ranks are left.
    """
    rows = []
    groups = (
        rates.groupby(list(OF_A_RULE), dropna=False, observed=True, sort=False)
        if len(rates)
        else ()
    )
    for _, rule in groups:
        rule = rule.sort_values(["seed", "rank"])
        inside = rule[rule["edge"] == INSIDE]
        row = rule.iloc[0].drop(
            ["rank", "seed", "best_lr", "best_loss", "edge", "tried", "rho", "parameters", "flops"]
        )
        low, high = predicted_transfer(
            str(row["optimizer"]), float(row["exponent_p"]), str(row["init"])
        )
        fit: dict[str, float | str] = _line(inside) | {
            "edges": len(rule) - len(inside),
            "predicted_low": low,
            "predicted_high": high,
        }
        ends = np.array([fit["ci_low"], fit["ci_high"], low, high], float)
        agrees = float(ends[0] <= high and low <= ends[1]) if np.isfinite(ends).all() else np.nan
        rho = rule.groupby("rank")["rho"].median()
        fit |= {"agrees": agrees, "rho_min": rho.min(), "rho_max": rho.max()}
        rows.append({str(name): value for name, value in row.items()} | fit)
    return pd.DataFrame(rows)


def predicted_transfer(optimizer: str, p: float, init: str) -> tuple[float, float]:
    """The interval that the exponent of the best rate should lie in; NaN where nothing is predicted.

    SGD's is a point, its lazy end: a step moves the output by ``gamma^2 r lr``, so ``2 p - 1``.
    """
    how = INITS.get(init)
    if how is None or how.drawn != "A" or how.q != 0 or optimizer not in OPTIMIZERS:
        return np.nan, np.nan
    if OPTIMIZERS[optimizer].family == "linear":
        return 2 * p - 1, 2 * p - 1
    low, high = sorted((p - 1, (p - 1) / 2))
    return low, high


def _line(inside: pd.DataFrame) -> dict[str, float | str]:
    """The fit of log best rate on log rank; rows come sorted by seed and rank."""
    nothing = dict.fromkeys(("exponent", "ci_low", "ci_high", "rank_min", "rank_max"), np.nan)
    if inside["rank"].nunique() < 2:
        return {**nothing, "interval": "none", "seeds": 0, "ranks": inside["rank"].nunique()}
    y_F1 = np.log(inside["best_lr"].to_numpy(float))[:, None]
    strands = Strands.of(np.zeros(len(inside)), inside["seed"].to_numpy())
    lines = fit_lines(inside["rank"].to_numpy(float), y_F1, strands)
    slope, df, seeds = float(lines.slope[0, 0]), int(lines.df[0, 0]), int(lines.seeds[0, 0])
    half = float(t_critical(df)) * float(lines.se_slope[0, 0])
    return {
        "exponent": slope,
        "ci_low": slope - half,
        "ci_high": slope + half,
        "interval": "none" if df == 0 else "ranks" if seeds == 1 else "seeds",
        "seeds": seeds,
        "ranks": int(lines.ranks[0, 0]),
        "rank_min": float(lines.rank_min[0, 0]),
        "rank_max": float(lines.rank_max[0, 0]),
    }


def _rho(probes: pd.DataFrame) -> dict[str, float]:
    """By cell: the median over layers of A's motion beside its init, at the last step it was measured at."""
    if "rho" not in probes:
        return {}
    rows = probes[
        (probes["site"] == "A") & (probes["batch"] == "train") & np.isfinite(probes["rho"])
    ]
    rows = rows.assign(cell_id=rows["cell_id"].astype(str))
    rows = rows[rows["step"] == rows.groupby("cell_id")["step"].transform("max")]
    return rows.groupby("cell_id")["rho"].median().to_dict()
