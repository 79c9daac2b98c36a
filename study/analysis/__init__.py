"""From stored tables to statements: exponents with intervals, predictions, verdicts, comparisons.

>>> found = load_tables("results/quick")                           # doctest: +SKIP
>>> rich.print(render_table(summary(found.exponents)))             # doctest: +SKIP

Nothing here imports torch, so a study can be analysed on a laptop from its stored tables.

- :mod:`~study.analysis.analyze`: all derived tables in one call.

Exponents:

- :mod:`~study.analysis.grouping`: the cells that form a curve;
- :mod:`~study.analysis.grids`, :mod:`~study.analysis.pooling`: probe rows as arrays, layers pooled;
- :mod:`~study.analysis.fits`: lines with standard errors, bends;
- :mod:`~study.analysis.blocks`: the seeds and ranks of a fit, if some are missing;
- :mod:`~study.analysis.exponents`: the ``exponents`` table;
- :mod:`~study.analysis.predictions`: its column ``predicted``, from theory;
- :mod:`~study.analysis.layer_numbers`: sizes and alignments of layers, for predictions;
- :mod:`~study.analysis.row_conditions`: clipping, eps and laziness, on which predictions depend;
- :mod:`~study.analysis.verdicts`: stable, or how the quantity changes; the tests and their errors;
- :mod:`~study.analysis.stable`: p*, the exponent of gamma at which a quantity is stable;
- :mod:`~study.analysis.shared`: rows of p* that are one measurement;
- :mod:`~study.analysis.rank_stabilized`: the paper's condition, at the first and the last step;
- :mod:`~study.analysis.expectations`: what an experiment expected beside what was measured;
- :mod:`~study.analysis.summary`: the rows to read first, as terminal tables;
- :mod:`~study.analysis.wording`: the numbers of a row as text, the same everywhere.

Losses:

- :mod:`~study.analysis.final_losses`: the final held-out loss of each run;
- :mod:`~study.analysis.rates`: the best learning rate and its exponent with rank;
- :mod:`~study.analysis.rate_predictions`: what theory predicts for this exponent;
- :mod:`~study.analysis.rate_table`: the exponents as a terminal table;
- :mod:`~study.analysis.rank_effects`: the effect of rank at one rate, the best, a matched step;
- :mod:`~study.analysis.tasks`: perplexity and exact match beside the base model's;
- :mod:`~study.analysis.truncations`: trained adapters cut to a lower rank.

Others:

- :mod:`~study.analysis.distances`: distances to the limit of infinite rank;
- :mod:`~study.analysis.grouping`, :mod:`~study.analysis.intervals`: shared helpers.
"""

from study.analysis.analyze import Analysis, analyze, load_tables, with_derived
from study.analysis.exponents import fit_exponents
from study.analysis.fits import fitted
from study.analysis.grouping import curve_columns
from study.analysis.predictions import predicted_curve, with_predictions
from study.analysis.rank_effects import compared_losses, rank_effects, rule_differences
from study.analysis.rate_table import render_rates
from study.analysis.rates import best_rates, rate_transfer
from study.analysis.row_conditions import lazy_ratios
from study.analysis.stable import first_to_read, side_by_side, stable_exponents
from study.analysis.summary import headline, render_stable, render_table, summary
from study.analysis.tasks import task_scores
from study.analysis.truncations import truncated_losses, truncation_effects
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
