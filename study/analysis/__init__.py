"""From stored tables to statements: exponents with intervals, predictions, verdicts, comparisons.

>>> found = load_tables("results/quick")                           # doctest: +SKIP
>>> rich.print(render_table(summary(found.exponents)))             # doctest: +SKIP

Nothing here imports torch, so a study can be analysed on a laptop from its stored tables.

- :mod:`~study.analysis.analyze`: all derived tables in one call.

From probes to verdicts, in the order in which a study passes through them:

- :mod:`~study.analysis.grouping`: the cells that form a curve;
- :mod:`~study.analysis.exponents`: the ``exponents`` table; layers are pooled here;
- :mod:`~study.analysis.fits`: its lines, with standard errors and bends;
- :mod:`~study.analysis.predictions`: its column ``predicted``, and the conditions (clipping, eps,
  laziness) on which it depends;
- :mod:`~study.analysis.layer_numbers`: sizes and alignments of layers, for predictions;
- :mod:`~study.analysis.verdicts`: stable, or how the quantity changes; the tests and their errors;
- :mod:`~study.analysis.stable`: p*, the exponent of gamma at which a quantity is stable.

What is read from them:

- :mod:`~study.analysis.summary`: the rows to read first, and those on the paper's condition;
- :mod:`~study.analysis.terminal`: the tables that the terminal shows;
- :mod:`~study.analysis.expectations`: what an experiment expected beside what was measured;
- :mod:`~study.analysis.local_slopes`: slopes between neighbouring ranks;
- :mod:`~study.analysis.wording`: the numbers of a row as text, the same everywhere.

Losses:

- :mod:`~study.analysis.losses`: final held-out losses and scores by rank and rule;
- :mod:`~study.analysis.rates`: the best learning rate and alpha, and their exponents with rank;
- :mod:`~study.analysis.rate_theory`: what theory predicts for these;
- :mod:`~study.analysis.distances`: distances to the limit of infinite rank.
"""

from study.analysis.analyze import Analysis, analyze, load_tables, with_derived
from study.analysis.exponents import fit_exponents
from study.analysis.fits import fitted
from study.analysis.grouping import curve_columns
from study.analysis.losses import (
    compared_losses,
    rank_effects,
    rule_differences,
    task_scores,
    truncated_losses,
    truncation_effects,
)
from study.analysis.predictions import lazy_ratios, predicted_curve, with_predictions
from study.analysis.rates import best_rates, rate_transfer
from study.analysis.stable import first_to_read, side_by_side, stable_exponents
from study.analysis.summary import headline, summary
from study.analysis.terminal import render_rates, render_stable, render_table
from study.analysis.verdicts import VERDICTS, holm, tost, with_verdicts

__all__ = [
    "VERDICTS",
    "Analysis",
    "analyze",
    "best_rates",
    "compared_losses",
    "curve_columns",
    "first_to_read",
    "fit_exponents",
    "fitted",
    "headline",
    "holm",
    "lazy_ratios",
    "load_tables",
    "predicted_curve",
    "rank_effects",
    "rate_transfer",
    "render_rates",
    "render_stable",
    "render_table",
    "rule_differences",
    "side_by_side",
    "stable_exponents",
    "summary",
    "task_scores",
    "tost",
    "truncated_losses",
    "truncation_effects",
    "with_derived",
    "with_predictions",
    "with_verdicts",
]
