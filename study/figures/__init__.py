"""The figures: pure functions, tables in and a matplotlib Figure out. They need no torch, no display and no LaTeX.

>>> for name, figure in draw_all(study.load("results/quick")):  # doctest: +SKIP
...     save(figure, "plots/quick", name)
"""

import logging
from collections.abc import Callable, Iterator

from matplotlib.figure import Figure

from study.figures.activation_moments import activation_moments_vs_rank
from study.figures.against_p import exponent_against_p
from study.figures.bits import exponents_by_bits
from study.figures.conditions import conditions
from study.figures.distances import distance_to_infinite_rank, rank_free_curves
from study.figures.eps import eps_over_ranks
from study.figures.learning_rates import learning_rate_basins, loss_against_rank
from study.figures.model_laws import descent_vs_rank, grad_norm_vs_rank
from study.figures.over_layers import exponent_heatmap
from study.figures.over_steps import exponents_over_training
from study.figures.over_training import grad_norm_curves, loss_curves
from study.figures.selection import Absent, Tables
from study.figures.style import save
from study.figures.truncated import truncated_losses

__all__ = ["FIGURES", "Absent", "Tables", "draw_all", "save"]

FIGURES: dict[str, Callable[[Tables], Figure]] = {
    "loss_curves": loss_curves,
    "grad_norm_curves": grad_norm_curves,
    "grad_norm_vs_rank": grad_norm_vs_rank,
    "activation_moments_vs_rank": activation_moments_vs_rank,
    "descent_vs_rank": descent_vs_rank,
    "exponent_against_p": exponent_against_p,
    "exponents_over_training": exponents_over_training,
    "exponents_by_bits": exponents_by_bits,
    "exponent_heatmap": exponent_heatmap,
    "conditions": conditions,
    "eps_over_ranks": eps_over_ranks,
    "loss_against_rank": loss_against_rank,
    "learning_rate_basins": learning_rate_basins,
    "truncated_losses": truncated_losses,
    "distance_to_infinite_rank": distance_to_infinite_rank,
    "rank_free_curves": rank_free_curves,
}
"""Every figure by the name of its file, in the order of a report. Each raises :class:`Absent` where it has no data."""

_log = logging.getLogger(__name__)


def draw_all(tables: Tables) -> Iterator[tuple[str, Figure]]:
    """Draw the figures that the tables allow, one after the other; why one is left out is logged as a warning."""
    for name, draw in FIGURES.items():
        try:
            figure = draw(tables)
        except Absent as reason:
            _log.warning("no figure %s: %s", name, reason)
            continue
        yield name, figure
