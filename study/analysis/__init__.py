"""Exponents with intervals, predictions, verdicts and comparisons, from stored tables.

>>> found = load_tables("results/quick")                           # doctest: +SKIP
>>> summary(found.exponents)                                       # doctest: +SKIP

Nothing here imports torch, so a laptop can analyse a study from its stored tables.
"""

import os
from dataclasses import replace

import numpy as np
import pandas as pd

from study.analysis.exponents import fit_exponents
from study.analysis.fits import fitted
from study.analysis.grouping import CURVE_ID, curve_columns, curve_labels
from study.analysis.losses import (
    compared_losses,
    rank_effects,
    rule_differences,
    task_scores,
    truncated_losses,
    truncation_effects,
)
from study.analysis.predictions import lazy_ratios, predicted_curve, with_predictions
from study.analysis.rates import best_rates, exponents_against_rho, rate_transfer
from study.analysis.stable import first_to_read, side_by_side, stable_exponents
from study.analysis.summary import summary
from study.analysis.verdicts import VERDICTS, holm, tost, with_verdicts
from study.store import StudyTables, load_measured
from study.vocabulary.quantities import QUANTITIES

HIGH_RANKS = 32.0
"""p* is estimated over all ranks, and again over ranks from here. They differ if the curve bends at
low rank."""


def load_tables(study_dir: str | os.PathLike[str]) -> StudyTables:
    """All tables of a study: those measured, and those computed from them.

    Takes about a second for a usual study and 12 s for 2,000 cells.
    """
    return with_derived(load_measured(study_dir))


def with_derived(measured: StudyTables) -> StudyTables:
    """``measured`` with derived tables. ``stable``: over all ranks and from :data:`HIGH_RANKS`
    (``rank_min``)."""
    cells, metrics, probes = measured.cells, measured.metrics, measured.probes
    predicted = with_predictions(fit_exponents(cells, probes), cells, metrics, probes)
    stable = [stable_exponents(predicted)]
    high = cells[(cells["rank"] >= HIGH_RANKS) & np.isfinite(cells["rank"])]
    if len(high):  # a fit needs two ranks of a curve
        high = high[high["rank"].groupby(curve_labels(high)[CURVE_ID]).transform("nunique") > 1]
    if len(high) and (cells["rank"] < HIGH_RANKS).any():
        mine = probes[probes["cell_id"].isin(set(high["cell_id"].astype(str)))]
        wanted = sorted({q.stat for q in QUANTITIES} & set(mine.columns))
        of_sites = mine[mine["site"].isin([q.site for q in QUANTITIES])]
        fits = fit_exponents(high, of_sites, stats=wanted)
        stable.append(stable_exponents(with_predictions(fits, high, metrics, mine)))
    stable = [table for table in stable if len(table)]
    return replace(
        measured,
        exponents=with_verdicts(predicted),
        stable=pd.concat(stable, ignore_index=True) if stable else pd.DataFrame(),
        rates=best_rates(cells, metrics, probes),
        losses=compared_losses(cells, metrics),
    )
