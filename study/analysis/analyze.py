"""All derived tables of a study in one call. They are computed whenever a study is read."""

import os
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from study.analysis.exponents import fit_exponents
from study.analysis.grouping import curve_numbers
from study.analysis.losses import compared_losses
from study.analysis.predictions import with_predictions
from study.analysis.rates import best_rates
from study.analysis.stable import stable_exponents
from study.analysis.verdicts import with_verdicts
from study.store import StudyTables, load_measured
from study.vocabulary.quantities import QUANTITIES

HIGH_RANKS = 32.0
"""p* is estimated over all ranks and again over ranks from here. A bend at low rank makes the two
differ."""


@dataclass(frozen=True)
class Analysis:
    """The derived tables of a study.

    - ``exponents``: see :func:`~study.analysis.exponents.fit_exponents`;
    - ``stable``: p*, over all ranks and over ranks from :data:`HIGH_RANKS` (``rank_min`` tells
      which);
    - ``rates``: the best learning rate of each rule, rank and seed;
    - ``losses``: final held-out losses, in three comparisons.

    A table is empty if the study does not allow it.
    """

    exponents: pd.DataFrame
    stable: pd.DataFrame
    rates: pd.DataFrame
    losses: pd.DataFrame


def load_tables(study_dir: str | os.PathLike[str]) -> StudyTables:
    """All tables of a study: those measured, and those computed from them.

    Takes about a second for a usual study and 12 s for 2,000 cells. Raises :class:`StudyError` if
    the folder holds no study, and as :func:`analyze` does.
    """
    return with_derived(load_measured(study_dir))


def with_derived(measured: StudyTables) -> StudyTables:
    """``measured`` with the derived tables. Raises :class:`StudyError` as :func:`analyze` does."""
    found = analyze(measured.cells, measured.metrics, measured.probes)
    return replace(measured, **vars(found))


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
    """The cells of curves with at least two ranks, as a fit needs."""
    if cells.empty:
        return cells
    return cells[cells["rank"].groupby(curve_numbers(cells)).transform("nunique") > 1]


def _stable_from(cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """p* over the ranks of ``cells`` alone, from the fits of its own quantities only."""
    ids = set(cells["cell_id"].astype(str))
    mine = probes[probes["cell_id"].isin(ids)]
    wanted = sorted({q.stat for q in QUANTITIES} & set(mine.columns))
    fitted = fit_exponents(
        cells, mine[mine["site"].isin([q.site for q in QUANTITIES])], stats=wanted
    )
    return stable_exponents(with_predictions(fitted, cells, metrics, mine))
