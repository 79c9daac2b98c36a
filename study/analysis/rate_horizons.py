"""Best learning rates at several horizons, from the same runs.

A run at a constant rate, stopped at step h, is the run of h steps. So every held-out loss on the
way gives the best rate for training that long. A schedule that falls to 0 at the end has one
horizon.
"""

import math

import numpy as np
import pandas as pd

from study.analysis.final_losses import INSIDE
from study.analysis.grouping import numbered
from study.analysis.rate_crossover import rate_exponent
from study.analysis.rate_predictions import MOVES, move_slopes
from study.analysis.rates import OF_A_RULE, best_rates, rate_transfer
from study.theory import family
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.statuses import BROKEN, STATUSES

CONSTANT = "constant"
RHO_COLUMNS: tuple[str, ...] = (
    "rho",
    "rho_low",
    "rho_high",
    "move_slope",
    "at_rho_low",
    "at_rho_high",
)


def horizons(cells: pd.DataFrame, metrics: pd.DataFrame) -> list[int]:
    """The steps after the first at which every finished run at a constant rate has a held-out loss.

    ``cells`` and ``metrics`` are those of a study. Broken runs need none.
    """
    whole = cells[_is_constant(cells) & (cells["status"] == "complete")]
    evaluated = metrics.reindex(columns=["cell_id", "step", "eval_loss"]).dropna()
    evaluated = evaluated[(evaluated["step"] > 0)].assign(id=evaluated["cell_id"].astype(str))
    evaluated = evaluated[evaluated["id"].isin(set(whole["cell_id"].astype(str)))]
    count = evaluated.drop_duplicates(["id", "step"]).groupby("step").size()
    return [int(step) for step in count.index[count == len(whole)]]


def rates_by_horizon(
    cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame
) -> pd.DataFrame:
    """:func:`~study.analysis.rates.best_rates` at each of :func:`horizons`: a column ``horizon``.

    ``rho`` is that of the last step measured by then. Empty without runs at a constant rate.
    """
    constant = cells[_is_constant(cells)]
    parts = [
        best_rates(*stopped_at(step, constant, metrics, probes)).assign(horizon=step)
        for step in horizons(cells, metrics)
    ]
    parts = [part for part in parts if "best_lr" in part]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def exponents_against_rho(rates: pd.DataFrame) -> pd.DataFrame:
    """:func:`~study.analysis.rates.rate_transfer` of each rule and horizon, beside rho.

    ``rates`` is the table of :func:`rates_by_horizon`. Further columns: ``horizon``; ``rho``, the
    geometric mean over the ranks of the fit and the seeds, at the best rate; ``rho_low`` and
    ``rho_high``, its range; ``move_slope``, m of :mod:`study.analysis.rate_crossover`;
    ``at_rho_low`` and ``at_rho_high``, the interval that it predicts there, from m_A = m to
    m_A = 1 - p. NaN without rho, or without a prediction.
    """
    if rates.empty:
        return pd.DataFrame()
    rows = []
    for _, rule in rates.groupby(numbered(rates, ("horizon", *OF_A_RULE))):
        [found] = rate_transfer(rule.drop(columns="horizon")).to_dict("records")
        row = {str(name): value for name, value in found.items()}
        rows.append(row | {"horizon": rule["horizon"].iloc[0], **_rho_and_theory(rule)})
    return pd.DataFrame(rows)


def _rho_and_theory(rule: pd.DataFrame) -> dict[str, float]:
    """The further columns of :func:`exponents_against_rho` for the best rates of one rule."""
    at_edge = rule.loc[rule["edge"] != INSIDE, "rank"]
    inside = rule[~rule["rank"].isin(at_edge)]
    rho = inside.loc[inside["rho"] > 0, "rho"].to_numpy(float)
    found = dict.fromkeys(RHO_COLUMNS, math.nan)
    if len(rho):
        mean = float(np.exp(np.log(rho).mean()))
        found |= {"rho": mean, "rho_low": float(rho.min()), "rho_high": float(rho.max())}
    moves = inside.groupby("rank")[list(MOVES)].first()
    optimizer = str(rule["optimizer"].iloc[0])
    if len(moves) > 1 and optimizer in OPTIMIZERS and family(optimizer) == "sign":
        m, p = float(np.mean(move_slopes(moves))), float(rule["exponent_p"].iloc[0])
        ends = [rate_exponent(m, of_A, found["rho"]) for of_A in (m, 1 - p)]
        found |= {"move_slope": m, "at_rho_low": min(ends), "at_rho_high": max(ends)}
    return found


def stopped_at(
    step: int, cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """``cells``, ``metrics`` and ``probes`` as if every run had had ``step`` steps.

    A run that broke later is complete.
    """
    status = cells["status"].astype(object).copy()
    for word in BROKEN:
        column = STATUSES[word].ended_at
        if column in cells:
            status[(status == word) & (cells[column].astype(float) > step)] = "complete"
    metrics, probes = (table[table["step"] <= step] for table in (metrics, probes))
    return cells.assign(status=status), metrics, probes


def _is_constant(cells: pd.DataFrame) -> "pd.Series[bool]":
    """Tables of a study that recorded no schedule have the default, which is constant."""
    if "schedule" not in cells:
        return pd.Series(True, cells.index)
    return cells["schedule"].astype(object).fillna(CONSTANT).eq(CONSTANT)
