"""Exponents with intervals, predictions, verdicts and comparisons, from stored tables.

>>> found = load_tables("results/quick")                           # doctest: +SKIP
>>> summary(found.exponents)                                       # doctest: +SKIP

Nothing here imports torch, so a laptop can analyse a study from its stored tables.
"""

from importlib import import_module
from typing import Any

_NAMES = {
    "derived": "load_tables with_derived",
    "exponents": "fit_exponents",
    "fits": "fitted",
    "losses": (
        "compared_losses rank_effects rule_differences task_scores truncated_losses "
        "truncation_effects"
    ),
    "predictions": "lazy_ratios predicted_curve with_predictions",
    "rates": "best_rates exponents_against_rho rate_transfer",
    "stable": "first_to_read stable_exponents",
    "verdicts": "VERDICTS holm summary tost with_verdicts",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}
"""The module of each public name."""


def __dir__() -> list[str]:
    return list(_MODULES)


def __getattr__(name: str) -> Any:
    """A public name, on first use. Pandas and scipy take two seconds, and ``study advise`` needs
    neither."""
    if name in _MODULES:
        return getattr(import_module(f"study.analysis.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'study.analysis' has no attribute {name!r}")
