"""Exponents with intervals, predictions, verdicts and comparisons, from stored tables.

>>> found = load_tables("results/quick")                           # doctest: +SKIP
>>> summary(found.exponents)                                       # doctest: +SKIP

Nothing here imports torch, so a laptop can analyse a study from its stored tables.
"""

import os
from dataclasses import replace

from study.analysis.exponents import fit_exponents
from study.analysis.fits import fitted
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
from study.analysis.stable import first_to_read, stable_exponents
from study.analysis.verdicts import VERDICTS, holm, summary, tost, with_verdicts
from study.store import StudyTables, load_measured


def load_tables(study_dir: str | os.PathLike[str]) -> StudyTables:
    """All tables of a study: those measured, and those computed from them.

    Takes about a second for a usual study and 12 s for 2,000 cells.
    """
    return with_derived(load_measured(study_dir))


def with_derived(measured: StudyTables) -> StudyTables:
    """``measured`` with derived tables."""
    cells, metrics, probes = measured.cells, measured.metrics, measured.probes
    predicted = with_predictions(fit_exponents(cells, probes), cells, metrics, probes)
    return replace(
        measured,
        exponents=with_verdicts(predicted),
        stable=stable_exponents(predicted),
        rates=best_rates(cells, metrics, probes),
        losses=compared_losses(cells, metrics),
    )
