"""From tables to statements: exponents with intervals, verdicts in words, and the few rows to read first.

>>> exponents = with_verdicts(fit_exponents(cells, probes))        # doctest: +SKIP
>>> rich.print(render_table(summary(exponents)))                   # doctest: +SKIP

Nothing here imports torch: a study is analysed again on a laptop, from its stored tables alone.
"""

from study.analysis.curves import curve_columns
from study.analysis.exponents import fit_exponents
from study.analysis.fits import fitted
from study.analysis.predictions import lazy_ratios, with_predictions
from study.analysis.stable import first_to_read, stable_exponents
from study.analysis.summary import render_stable, render_table, summary
from study.analysis.verdicts import PRIMARY, VERDICTS, holm, tost, with_verdicts

__all__ = [
    "PRIMARY",
    "VERDICTS",
    "curve_columns",
    "first_to_read",
    "fit_exponents",
    "fitted",
    "holm",
    "lazy_ratios",
    "render_stable",
    "render_table",
    "stable_exponents",
    "summary",
    "tost",
    "with_predictions",
    "with_verdicts",
]
