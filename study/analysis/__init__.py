"""From tables to statements: exponents with intervals, verdicts in words, and the few rows to read first.

>>> found = analyze(tables.cells, tables.metrics, tables.probes)   # doctest: +SKIP
>>> rich.print(render_table(summary(found.exponents)))             # doctest: +SKIP

Nothing here imports torch: a study is analysed again on a laptop, from its stored tables alone.
"""

from study.analysis.analyze import Analysis, analyze
from study.analysis.exponents import fit_exponents
from study.analysis.fits import fitted
from study.analysis.grouping import curve_columns
from study.analysis.predictions import with_predictions
from study.analysis.rank_effects import compared_losses, rank_effects, rule_differences
from study.analysis.rates import best_rates, rate_transfer
from study.analysis.row_conditions import lazy_ratios
from study.analysis.stable import first_to_read, side_by_side, stable_exponents
from study.analysis.summary import render_stable, render_table, summary
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
    "holm",
    "lazy_ratios",
    "rank_effects",
    "rate_transfer",
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
    "with_predictions",
    "with_verdicts",
]
