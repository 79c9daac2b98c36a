"""From tables to statements: exponents with intervals, verdicts in words, and the few rows to read first.

>>> exponents = with_verdicts(fit_exponents(cells, probes))        # doctest: +SKIP
>>> rich.print(render_table(summary(exponents)))                   # doctest: +SKIP

Nothing here imports torch: a study is analysed again on a laptop, from its stored tables alone.
"""

from study.analysis.curves import curve_columns
from study.analysis.exponents import fit_exponents
from study.analysis.fits import fitted
from study.analysis.summary import render_table, summary
from study.analysis.verdicts import PRIMARY, VERDICTS, holm, tost, with_verdicts

__all__ = [
    "PRIMARY",
    "VERDICTS",
    "curve_columns",
    "fit_exponents",
    "fitted",
    "holm",
    "render_table",
    "summary",
    "tost",
    "with_verdicts",
]
