"""Does the best learning rate transfer across ranks? Its exponent with rank, beside theory's.

A sign-like step of size ``lr`` moves the adapter output by ``gamma r lr`` while A stays near its
init (rho = |dA x| / |A0 x| << 1), and by ``gamma r lr^2`` if the motion of A dominates (rho >> 1).
For a move of the same size at every rank, the best rate scales as ``r^-(1 - p)`` in the first case
and as ``r^-(1 - p)/2`` in the second: exponents 0 under alpha/r, -1/2 to -1/4 under alpha/sqrt(r),
-1 to -1/2 at a constant gamma. The prediction is the interval between the two (the second: muA,
arXiv 2602.06204). ``rho`` tells which end is nearer.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from study.analysis.final_losses import final_losses
from study.analysis.fits import Floats, Strands, fit_lines, t_critical
from study.analysis.grouping import numbered
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.quantities import TRAIN

INSIDE, LOWEST, HIGHEST = "", "lowest", "highest"
"""Values of ``edge``: whether the best of the tried rates is the lowest or the highest. If it is,
the true best rate may lie outside."""

OF_A_RULE = ("setting", "scaling", "exponent_p", "alpha")


class Best(NamedTuple):
    """The learning rate of lowest loss, that loss, and its ``edge``."""

    lr: float
    loss: float
    edge: str


def best_rates(cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """The best learning rate of every rule, rank and seed that was run at two rates or more.

    Columns: those of the curve without ``lr``, ``setting``, ``rank``, ``seed``, ``best_lr``,
    ``best_loss``, ``edge``, ``tried`` (the number of rates), and ``rho``: the motion of A beside
    its init, median over layers, at the last probed step of the run at the nearest rate (NaN if it
    was not recorded).
    """
    ends = final_losses(cells, metrics, probes)
    rho = _rho(probes)
    rows = []
    for _, runs in ends.groupby(numbered(ends, [*OF_A_RULE, "rank", "seed"])):
        if runs["lr"].nunique() < 2 or not np.isfinite(runs["loss"]).any():
            continue
        found = bottom(runs["lr"].to_numpy(float), runs["loss"].to_numpy(float))
        off = (np.log(runs["lr"]) - np.log(found.lr)).abs()
        nearest = off.where(np.isfinite(runs["loss"])).idxmin()
        rows.append(
            {
                **runs.iloc[0].drop(["lr", "loss", "cell_id", "gamma"]).to_dict(),
                "best_lr": found.lr,
                "best_loss": found.loss,
                "edge": found.edge,
                "tried": runs["lr"].nunique(),
                "rho": rho.get(str(runs.loc[nearest, "cell_id"]), np.nan),
            }
        )
    return pd.DataFrame(rows)


def bottom(lr: Floats, loss: Floats) -> Best:
    """The minimum of the loss over learning rates: the vertex of a parabola in log ``lr``.

    The parabola passes through the best rate tried and its two neighbours. A loss of NaN is a run
    that diverged. It bounds the rates that work, so a rate beside it is not an edge. No parabola
    passes through it, so the best rate tried is returned. At least one loss must be finite, and
    rates must be distinct.
    """
    order = np.argsort(lr)
    x, y = np.log(lr[order]), loss[order]
    best = int(np.nanargmin(y))
    edge = LOWEST if best == 0 else HIGHEST if best == len(x) - 1 else INSIDE
    if edge or not np.isfinite(y[best - 1 : best + 2]).all():
        return Best(float(np.exp(x[best])), float(y[best]), edge)
    left, here, right = y[best - 1], y[best], y[best + 1]
    a, b = x[best - 1] - x[best], x[best + 1] - x[best]
    # y = here + c u + d u^2 through (a, left), (b, right). The middle is the lowest, so d >= 0.
    d = ((left - here) / a - (right - here) / b) / (a - b)
    c = (left - here) / a - d * a
    u = -c / (2 * d) if d > 0 else 0.0
    return Best(float(np.exp(x[best] + u)), float(here + c * u + d * u * u), edge)


def rate_transfer(rates: pd.DataFrame) -> pd.DataFrame:
    """The scaling exponent of the best learning rate with rank, one row per rule.

    ``rates`` is the table of :func:`best_rates`. Per seed a line is fitted through the ranks whose
    best rate is not at an edge; the interval is Student's t over seeds (with one seed, over ranks).

    Columns: ``exponent`` (NaN for fewer than two ranks), ``ci_low``, ``ci_high``, ``interval``,
    ``seeds``, ``ranks``, ``rank_min``, ``rank_max``, ``edges`` (best rates at an edge, not in the
    fit), ``predicted_low``, ``predicted_high``, ``agrees`` (1 if the intervals overlap, 0 if not,
    NaN if one is missing), ``rho_min``, ``rho_max`` over ranks.
    """
    if rates.empty:
        return pd.DataFrame()
    not_of_a_rule = ["rank", "seed", "best_lr", "best_loss", "edge", "tried", "rho"]
    rows = []
    for _, rule in rates.groupby(numbered(rates, OF_A_RULE)):
        rule = rule.sort_values(["seed", "rank"])
        inside = rule[rule["edge"] == INSIDE]
        row = rule.iloc[0].drop([*not_of_a_rule, "parameters", "flops"])
        low, high = predicted_transfer(str(row["optimizer"]), row["exponent_p"], str(row["init"]))
        fit = _line(inside)
        ends = np.array([fit["ci_low"], fit["ci_high"], low, high], float)
        overlap = float(ends[0] <= high and low <= ends[1])
        rho = rule.groupby("rank")["rho"].median()
        rows.append(
            {
                **{str(name): value for name, value in row.items()},
                **fit,
                "edges": len(rule) - len(inside),
                "predicted_low": low,
                "predicted_high": high,
                "agrees": overlap if np.isfinite(ends).all() else np.nan,
                "rho_min": rho.min(),
                "rho_max": rho.max(),
            }
        )
    return pd.DataFrame(rows)


def predicted_transfer(optimizer: str, p: float, init: str) -> tuple[float, float]:
    """The interval predicted for the exponent of the best rate; NaN without a prediction.

    Under a linear rule it is one value, that of the lazy regime: a step moves the output by
    ``gamma^2 r lr``, so the exponent is ``2 p - 1``.
    """
    how = INITS.get(init)
    if how is None or how.drawn != "A" or how.q != 0 or optimizer not in OPTIMIZERS:
        return np.nan, np.nan
    if OPTIMIZERS[optimizer].family == "linear":
        return 2 * p - 1, 2 * p - 1
    low, high = sorted((p - 1, (p - 1) / 2))
    return low, high


def _line(inside: pd.DataFrame) -> dict[str, float | str]:
    """The fit of the log best rate against log rank. Rows are sorted by seed and rank."""
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
    """By cell the motion of A beside its init, median over layers, at the last step measured."""
    if "rho" not in probes:
        return {}
    of_A = (probes["site"] == "A") & (probes["batch"] == TRAIN)
    rows = probes[of_A & np.isfinite(probes["rho"])]
    rows = rows.assign(cell_id=rows["cell_id"].astype(str))
    rows = rows[rows["step"] == rows.groupby("cell_id")["step"].transform("max")]
    return rows.groupby("cell_id")["rho"].median().to_dict()
