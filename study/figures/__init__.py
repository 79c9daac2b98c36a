"""The figures: functions from tables to a matplotlib Figure. No torch, no display, no LaTeX.

>>> for name, figure in draw_all(study.load("results/quick")):  # doctest: +SKIP
...     save(figure, "plots/quick", name)

A figure is a function of the tables, decorated with :func:`study.figures.style.paper`. The first
paragraph of its docstring is its caption in reports.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module

from matplotlib.figure import Figure

from study.analysis.wording import settings
from study.figures import style
from study.figures.selection import Absent, Tables
from study.figures.style import save

_MODULES = {
    "loss_curves": "over_training",
    "grad_norm_curves": "over_training",
    "grad_norm_vs_rank": "against_rank",
    "activation_moments_vs_rank": "against_rank",
    "descent_vs_rank": "against_rank",
    "exponent_against_p": "against_p",
    "exponents_over_training": "exponents",
    "exponents_by_setting": "exponents",
    "loss_in_bf16": "bf16",
    "conditions": "against_rank",
    "loss_against_rank": "final_loss",
    "loss_against_alpha": "against_rate",
    "learning_rate_basins": "against_rate",
    "learning_rate_basins_by_setting": "against_rate",
    "rate_exponent_vs_rho": "against_rate",
    "alpha_plane": "plane",
    "best_pairs_by_rank": "plane",
    "loss_against_rho": "plane",
    "truncated_losses": "final_loss",
    "distance_to_infinite_rank": "distances",
    "bits_stored": "final_loss",
}
"""The module of each figure. A figure has the name of its function and of its file."""

FIGURES: dict[str, Callable[[Tables], Figure]] = {
    name: getattr(import_module(f"{__name__}.{module}"), name) for name, module in _MODULES.items()
}
"""Every figure, in the order of a report. Each raises :class:`Absent` if its data are missing."""

_log = logging.getLogger(__name__)


def draw_all(
    tables: Tables,
    left_out: Callable[[str], None] = _log.warning,
    names: Iterable[str] | None = None,
) -> Iterator[tuple[str, Figure]]:
    """Draw the figures of ``names`` (None: all) whose data exist. ``left_out`` gets a line for each
    of the others."""
    for name in FIGURES if names is None else names:
        try:
            figure = FIGURES[name](tables)
        except Absent as reason:
            left_out(f"no figure {name}: {reason}")
            continue
        if not figure.get_label():  # a figure that does not say what it shows: all cells
            figure.set_label(settings(tables.cells))
            with style.paper():
                style.finish(figure, figure.get_supxlabel().replace("\n", " "))
        yield name, figure
