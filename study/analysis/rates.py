"""Does the best learning rate transfer across ranks? Its exponent with rank, beside theory's.

The prediction is in :mod:`study.analysis.rate_predictions`.

Learning rates come in a grid, and that makes an error which all seeds share. An interval over seeds
does not contain it:

- beside a run that diverged the best rate is one of the grid. The true one is anywhere within half
  a step of it: the error is uniform, with standard deviation ``h / sqrt(12)``, where h is the step
  in log lr;
- elsewhere it is the vertex of the parabola through three points. It is exact for a parabola. In a
  basin ``a u^2 + b u^3``, u being the distance from the minimum in log lr, its error is
  ``(b / 2a) (3 u^2 - h^2)`` for a middle point at u, to first order in the skew ``k = b h / a``.
  The constant part is the same at every rank, and u is uniform over a step, so the rest has a
  standard deviation of ``k h / sqrt(80)``. In basins of two half-parabolas of different widths it
  is about ``h (k / sqrt(80) + 1.2 k^2)``, by simulation, and this is what is used; in the smooth
  basin ``exp(u) - u`` it is about half of it. The skew is that of a fourth point. It varies with
  the offset of the grid, so :data:`QUANTILE` over ranks and seeds stands for all. With a skew
  above :data:`SKEWED` the parabola fails, and with three rates the skew is unknown: both count as
  the first case.

Seeds whose best rates differ by more than a third of a step average the error out: its common part
has the variance above times ``exp(-(2 pi s / h)^2)``, the first harmonic of rounding, where s is
their standard deviation. The half widths of the two intervals, Student's t over seeds and 1.96
standard deviations of the grid, are added in quadrature. (With the degrees of freedom of Welch and
Satterthwaite the interval of three seeds that agree by chance would be narrower than over seeds
alone: it covered 91 % at two ranks.)
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from study.analysis.final_losses import HIGHEST, INSIDE, LOWEST, final_losses, rates_of_a_rank
from study.analysis.fits import Floats, Strands, fit_lines, t_critical
from study.analysis.grouping import numbered
from study.analysis.rate_predictions import MOVES, log_moves, predicted_interval
from study.vocabulary.agreements import AGREES, DIFFERS
from study.vocabulary.quantities import TRAIN
from study.vocabulary.thresholds import CONFIDENCE, RATE_RATIO, SEEDS_FOR_VERDICT
from study.vocabulary.verdicts import ONE_SEED, UNCLEAR

OF_A_RULE = ("setting", "scaling", "exponent_p", "alpha")
SKEWED = 0.3
"""The skew above which three points do not place the minimum. The limit of a steep wall is 1/3."""
NORMAL = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
QUANTILE = 0.75
"""Of the skews of a rule. Intervals then cover 93 to 99 %, if one half-parabola is 3 to 20 times as
steep as the other."""
NOT_OF_A_RULE = (
    *("rank", "seed", "best_lr", "best_loss", "edge", "tried", "grid_step", "grid_sd"),
    *("rho", *MOVES, "parameters", "flops"),
)
"""The columns of ``rates`` that vary within a rule."""


class Best(NamedTuple):
    """The learning rate of lowest loss, that loss, and its ``edge``.

    - ``step``: the mean of the steps in log lr to the neighbouring rates, NaN at an edge;
    - ``skew``: ``k`` of the module; NaN if unknown, infinite if the rate is one of the grid.
    """

    lr: float
    loss: float
    edge: str
    step: float = math.nan
    skew: float = math.nan


def best_rates(cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """The best learning rate of every rule, rank and seed.

    Of each rank only the rates count that all its seeds were run at
    (:func:`~study.analysis.final_losses.rates_of_a_rank`); a rank with fewer than two has no rows.
    Ranks need not share a grid. In a sweep that was interrupted, a rank may lack the rates around
    its best one. The best of the others is then at an edge, and no exponent is fitted to it.

    Columns: those of the curve without ``lr``, ``setting``, ``rank``, ``seed``, and

    - ``best_lr``, ``best_loss``, ``edge``: see :func:`bottom`;
    - ``tried``: the number of rates;
    - ``grid_step``: the mean of the steps in log lr to the two neighbouring rates, NaN at an edge;
    - ``grid_sd``: the standard deviation of the error of log ``best_lr`` that the grid makes;
    - ``rho``: the motion of A beside its init, median over layers, at the last probed step of the
      run at the nearest rate (NaN if it was not recorded);
    - ``log_move_aligned``, ``log_move_unaligned``: see
      :func:`~study.analysis.rate_predictions.log_moves`.
    """
    ends = final_losses(cells, metrics, probes)
    rho = _rho(probes)
    parts = []
    for _, rule in ends.groupby(numbered(ends, OF_A_RULE)):
        table = _best_of_a_rule(rule, rho)
        if len(table):
            parts.append(table.join(log_moves(rule, probes), on="rank"))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _best_of_a_rule(rule: pd.DataFrame, rho: dict[str, float]) -> pd.DataFrame:
    """The rows of :func:`best_rates` for the runs of one rule, without theory's columns."""
    of_ranks = {
        float(runs["rank"].iloc[0]): rates_of_a_rank(runs) for _, runs in rule.groupby("rank")
    }
    rows, found = [], []
    for _, own in rule.groupby(["rank", "seed"]):
        tried = of_ranks[float(own["rank"].iloc[0])]
        own = own[own["lr"].isin(tried)]
        if len(tried) < 2 or not np.isfinite(own["loss"]).any():
            continue
        best = bottom(own["lr"].to_numpy(float), own["loss"].to_numpy(float))
        off = (np.log(own["lr"]) - np.log(best.lr)).abs()
        nearest = off.where(np.isfinite(own["loss"])).idxmin()
        rows.append(
            {
                **own.iloc[0].drop(["lr", "loss", "cell_id", "gamma"]).to_dict(),
                "best_lr": best.lr,
                "best_loss": best.loss,
                "edge": best.edge,
                "tried": len(tried),
                "grid_step": best.step,
                "rho": rho.get(str(own.loc[nearest, "cell_id"]), np.nan),
            }
        )
        found.append(best)
    return pd.DataFrame(rows).assign(grid_sd=grid_errors(found)) if rows else pd.DataFrame()


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
    if edge:
        return Best(float(np.exp(x[best])), float(y[best]), edge)
    a, b = x[best - 1] - x[best], x[best + 1] - x[best]
    step = float(b - a) / 2
    # y = here + c u + d u^2 through its neighbours. The middle is the lowest, so d >= 0.
    d = _curvature(x, y, best)
    if not d > 0:  # NaN beside a run that diverged
        return Best(float(np.exp(x[best])), float(y[best]), edge, step, math.inf)
    c = (y[best - 1] - y[best]) / a - d * a
    u = -c / (2 * d)
    return Best(
        lr=float(np.exp(x[best] + u)),
        loss=float(y[best] + c * u + d * u * u),
        edge=edge,
        step=step,
        skew=abs(_third(x, y, best)) * step / d,
    )


def _curvature(x: Floats, y: Floats, middle: int) -> float:
    """The second divided difference of y around ``middle``: d of ``c u + d u^2``."""
    left, here, right = y[middle - 1 : middle + 2]
    a, b = x[middle - 1] - x[middle], x[middle + 1] - x[middle]
    return float(((left - here) / a - (right - here) / b) / (a - b))


def _third(x: Floats, y: Floats, best: int) -> float:
    """The third divided difference over the best point, its neighbours, and the lower one of the
    two points beyond. NaN if there is none."""
    beyond = [i for i in (best - 2, best + 2) if 0 <= i < len(x) and np.isfinite(y[i])]
    if not beyond:
        return math.nan
    outer = min(beyond, key=lambda i: y[i])
    side = -1 if outer < best else 1
    near, off = _curvature(x, y, best), _curvature(x, y, best + side)
    return (off - near) / float(x[outer] - x[best - side])


def grid_errors(found: list[Best]) -> Floats:
    """The standard deviations of the errors that the grid makes in log ``lr``, for the best rates
    of one rule. See the module. NaN at an edge."""
    step, skew = (np.array([getattr(best, name) for best in found]) for name in ("step", "skew"))
    known = skew[np.isfinite(skew)]
    shared = float(np.quantile(known, QUANTILE)) if len(known) else math.inf
    placed = step * (shared / math.sqrt(80) + 1.2 * shared**2)
    within_half_a_step = step / math.sqrt(12)
    return np.where(np.isinf(skew) | (shared > SKEWED), within_half_a_step, placed)


def rate_transfer(rates: pd.DataFrame) -> pd.DataFrame:
    """The scaling exponent of the best learning rate with rank, one row per rule.

    ``rates`` is the table of :func:`best_rates`. Per seed a line is fitted through the ranks at
    which no seed has its best rate at an edge. The interval is Student's t over seeds, widened by
    the error that the grid makes (see the module). With one seed it only shows how straight the
    line over ranks is.

    Columns: ``exponent`` (NaN for fewer than two ranks), ``ci_low``, ``ci_high``, ``interval``,
    ``seeds``, ``ranks``, ``rank_min``, ``rank_max``, ``se_grid`` (the part of the standard error
    that the grid makes), ``edges`` (best rates at an edge), ``predicted_low``, ``predicted_high``,
    ``agreement`` (a word of :mod:`study.vocabulary.agreements`, empty without an exponent or a
    prediction), ``rho_min``, ``rho_max`` over ranks.
    """
    if rates.empty:
        return pd.DataFrame()
    rows = []
    for _, rule in rates.groupby(numbered(rates, OF_A_RULE)):
        rule = rule.sort_values(["seed", "rank"])
        at_edge = rule["edge"] != INSIDE
        inside = rule[~rule["rank"].isin(rule.loc[at_edge, "rank"])]
        row = rule.iloc[0].drop(list(NOT_OF_A_RULE), errors="ignore")
        fit = _line(inside)
        of_ranks = (inside if fit["ranks"] else rule).groupby("rank")[list(MOVES)].first()
        low, high = predicted_interval(of_ranks, str(row["optimizer"]))
        rho = rule.groupby("rank")["rho"].median()
        rows.append(
            {
                **{str(name): value for name, value in row.items()},
                **fit,
                "edges": int(at_edge.sum()),
                "predicted_low": low,
                "predicted_high": high,
                "agreement": agreement(fit, low, high),
                "rho_min": rho.min(),
                "rho_max": rho.max(),
            }
        )
    return pd.DataFrame(rows)


def agreement(fit: dict[str, float | str], low: float, high: float) -> str:
    """The word for a fitted exponent beside the predicted interval from ``low`` to ``high``.

    The predicted interval is widened by a tolerance, the slope that a factor of ``RATE_RATIO``
    makes over the ranks. ``agrees``: the measured interval lies inside the widened one.
    ``differs``: it lies outside. So either word is wrong in at most 2.5 % of cases at the margin.
    """
    measured = np.array([fit["exponent"], low, high], float)
    if not np.isfinite(measured).all():
        return ""
    if fit["seeds"] == 1:
        return ONE_SEED
    ci_low, ci_high = float(fit["ci_low"]), float(fit["ci_high"])
    if int(fit["seeds"]) < SEEDS_FOR_VERDICT or math.isnan(ci_low):
        return UNCLEAR
    tolerance = math.log(RATE_RATIO) / math.log(float(fit["rank_max"]) / float(fit["rank_min"]))
    if low - tolerance <= ci_low and ci_high <= high + tolerance:
        return AGREES
    if ci_high < low - tolerance or ci_low > high + tolerance:
        return DIFFERS
    return UNCLEAR


def _line(inside: pd.DataFrame) -> dict[str, float | str]:
    """The fit of the log best rate against log rank. Rows are sorted by seed and rank."""
    unknown = ("exponent", "ci_low", "ci_high", "rank_min", "rank_max", "se_grid")
    if inside["rank"].nunique() < 2:
        nothing: dict[str, float | str] = dict.fromkeys(unknown, np.nan)
        return nothing | {"interval": "none", "seeds": 0, "ranks": 0}
    y_F1 = np.log(inside["best_lr"].to_numpy(float))[:, None]
    strands = Strands.of(np.zeros(len(inside)), inside["seed"].to_numpy())
    lines = fit_lines(inside["rank"].to_numpy(float), y_F1, strands)
    slope, df, seeds = float(lines.slope[0, 0]), float(lines.df[0, 0]), int(lines.seeds[0, 0])
    # With one seed, the scatter of the ranks about the line contains the error of the grid.
    of_grid = _slope_variance(inside) if seeds > 1 else 0.0
    of_seeds = float(lines.se_slope[0, 0]) ** 2
    half = math.hypot(t_critical(df) * math.sqrt(of_seeds), NORMAL * math.sqrt(of_grid))
    return {
        "exponent": slope,
        "ci_low": slope - half,
        "ci_high": slope + half,
        "interval": "none" if df == 0 else "ranks" if seeds == 1 else "seeds",
        "seeds": seeds,
        "ranks": int(lines.ranks[0, 0]),
        "rank_min": float(lines.rank_min[0, 0]),
        "rank_max": float(lines.rank_max[0, 0]),
        "se_grid": math.sqrt(of_grid),
    }


def _slope_variance(inside: pd.DataFrame) -> float:
    """The variance of the slope that the grid makes: the part that all seeds share."""
    in_steps = np.log(inside["best_lr"]) / inside["grid_step"]
    by = inside.assign(variance=inside["grid_sd"] ** 2, in_steps=in_steps).groupby("rank")
    scatter2 = by["in_steps"].var().fillna(0.0).to_numpy(float)
    shared = by["variance"].mean().to_numpy(float) * np.exp(-((2 * np.pi) ** 2) * scatter2)
    x = np.log(np.array(list(by.groups), float))
    weight = (x - x.mean()) / np.square(x - x.mean()).sum()
    return float(np.sum(weight**2 * shared))


def _rho(probes: pd.DataFrame) -> dict[str, float]:
    """By cell the motion of A beside its init, median over layers, at the last step measured."""
    if "rho" not in probes:
        return {}
    of_A = (probes["site"] == "A") & (probes["batch"] == TRAIN)
    rows = probes[of_A & np.isfinite(probes["rho"])]
    rows = rows.assign(cell_id=rows["cell_id"].astype(str))
    rows = rows[rows["step"] == rows.groupby("cell_id")["step"].transform("max")]
    return rows.groupby("cell_id")["rho"].median().to_dict()
