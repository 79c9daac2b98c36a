"""Everything that a study's tables say, in one call: what ``study analyze`` writes and ``study report`` reads."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from study.analysis.exponents import fit_exponents
from study.analysis.grouping import curve_labels
from study.analysis.predictions import with_predictions
from study.analysis.rank_effects import compared_losses
from study.analysis.rates import best_rates
from study.analysis.stable import stable_exponents
from study.analysis.verdicts import with_verdicts
from study.vocabulary.quantities import QUANTITIES

HIGH_RANKS = 32.0
"""p* is given over all ranks and, beside it, over those from here: what bends at low rank differs between the two."""


@dataclass(frozen=True)
class Analysis:
    """The derived tables of a study, under the names they are stored by.

    ``exponents``: see :func:`~study.analysis.exponents.fit_exponents`; ``stable``: p*, once over all ranks and once
    over those from :data:`HIGH_RANKS` (``rank_min`` tells the two apart); ``rates``: the best learning rate of each
    rule, rank and seed; ``losses``: final held-out losses as they are compared. Empty where there is nothing to say.
    """

    exponents: pd.DataFrame
    stable: pd.DataFrame
    rates: pd.DataFrame
    losses: pd.DataFrame


def analyze(cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame) -> Analysis:
    """Fit, predict, judge and compare. Raises :class:`StudyError` as ``fit_exponents`` does."""
    predicted = with_predictions(fit_exponents(cells, probes), cells, metrics, probes)
    stable = [stable_exponents(predicted)]
    high = _of_several_ranks(cells[(cells["rank"] >= HIGH_RANKS) & np.isfinite(cells["rank"])])
    if len(high) and (cells["rank"] < HIGH_RANKS).any():
        stable.append(_stable_from(high, metrics, probes))
    stable = [table for table in stable if len(table)]
    return Analysis(
        exponents=with_verdicts(predicted),
        stable=pd.concat(stable, ignore_index=True) if stable else pd.DataFrame(),
        rates=best_rates(cells, metrics, probes),
        losses=compared_losses(cells, metrics, probes),
    )


def _of_several_ranks(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of curves with two ranks or more: the others have nothing to fit."""
    if cells.empty:
        return cells
    labels = curve_labels(cells)
    curve = labels.groupby(list(labels), dropna=False, observed=True, sort=False).ngroup()
    return cells[cells["rank"].groupby(curve).transform("nunique") > 1]


def _stable_from(cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """p* over the ranks of ``cells`` alone, fitting no more than it takes."""
    ids = set(cells["cell_id"].astype(str))
    mine = probes[probes["cell_id"].isin(ids)]
    wanted = sorted({q.stat for q in QUANTITIES} & set(mine.columns))
    fitted = fit_exponents(
        cells, mine[mine["site"].isin([q.site for q in QUANTITIES])], stats=wanted
    )
    return stable_exponents(with_predictions(fitted, cells, metrics, mine))
