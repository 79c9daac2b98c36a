"""Finite-rank sizes under Muon: an update is the orthogonalised gradient (docs/derivations.md).

Every nonzero singular value of an update is lr times the optimizer's factor for the matrix's shape
(:data:`study.vocabulary.optimizers.ADJUSTMENTS`). m is the rank of the weight gradient ``G``
[O, D]: at most the number of tokens that it sums over, O and D. The forms with D are exact for a
Gaussian A and one gradient: at step 1, or with the same batch at every step.
"""

import math

import numpy as np

from study.theory.layers import Layer
from study.theory.log_gaps import Floats, sum_gap
from study.theory.rows import PowerLaw, adjusted_exponent

ORTHOGONAL_FROM = 5
"""The fewest Newton-Schulz steps, torch's default, that leave nearly equal singular values."""
POINTS = 400
"""Points of an integral over the logarithm of kappa. The error is below 1e-3."""
_log_gamma = np.vectorize(math.lgamma, otypes=[float])


def adjustment(rows: Floats, columns: Floats, adjust: str) -> Floats:
    if adjust == "none":
        return np.ones(np.broadcast(rows, columns).shape)
    if adjust == "original":
        return np.sqrt(np.maximum(1, rows / columns))
    return 0.2 * np.sqrt(np.maximum(rows, columns))


def bend(row: PowerLaw, ranks: Floats, layer: Layer, init: str, adjust: str) -> Floats:
    """The size of a quantity over its power law at large rank, up to a factor, [ranks]; NaN without
    a closed form."""
    if (row.term == "random") == (init == "B"):  # of B
        factor = adjustment(np.full(ranks.shape, layer.d_out), ranks, adjust)
    else:
        factor = adjustment(ranks, np.full(ranks.shape, layer.d_in), adjust)
    power = row.rank + adjusted_exponent(row, init, adjust)
    return np.asarray(factor * np.sqrt(_square(row, ranks, layer, init)) / ranks**power)


def _square(row: PowerLaw, ranks: Floats, layer: Layer, init: str) -> Floats:
    """The mean square, up to a factor, [ranks]."""
    if row.term == "nuclear":
        return nuclear_norm(ranks, layer) ** 2
    m, fan = layer.g_rank, layer.d_in if init == "A" else layer.d_out
    captured = np.minimum(ranks, m)  # NaN for an unknown m
    single = np.where(m == 1, 1.0, math.nan)
    if row.term in ("trained", "random"):
        return captured
    if row.term == "weight":
        return np.asarray(captured * (fan - m + np.maximum(ranks, m)))
    if row.term == "aligned":
        outside = 0.0 if m == fan else layer.outside
        beyond = np.where(ranks > m, (1 - outside) * ranks + outside * captured, ranks)
        return np.where(np.isnan(m), math.nan, beyond)
    if row.term == "reached":
        return np.where(ranks >= m, 1.0, math.nan)
    return np.asarray(single * (ranks + fan - m))


def nuclear_norm(ranks: Floats, layer: Layer) -> Floats:
    """The mean of ``|G Z^T|_* / |G|`` for a standard normal Z of shape [r, D], [ranks].

    NaN without ``r_nuc``, or without ``r_eff`` and ``r_align``.

    G is modelled as one direction with the layer's share of |G|^2, plus k others of equal size.
    r_nuc determines k. docs/derivations.md has the integral.
    """
    if layer.g_rank == 1:
        return math.sqrt(2) * np.exp(_log_gamma((ranks + 1) / 2) - _log_gamma(ranks / 2))
    if math.isnan(layer.r_nuc) or math.isnan(layer.share):
        return np.full(ranks.shape, math.nan)
    share = min(layer.share, 1 - 1e-6)
    rest = 1 - share
    others = max(1.0, (math.sqrt(layer.r_nuc) - math.sqrt(share)) ** 2 / rest)
    one, each = share, rest / others
    # df = r is a quadratic equation for kappa, with a root above 0 if r is below the rank of G.
    linear = ranks * (one + each) - 1
    constant = one * each * np.maximum(1 + others - ranks, 0)
    lowest = (np.sqrt(linear**2 + 4 * ranks * constant) - linear) / (2 * ranks)
    log_kappa = np.linspace(np.log(np.maximum(lowest, each * 1e-6)), math.log(1e6), POINTS, axis=1)
    kappa = np.exp(log_kappa)
    df = one / (one + kappa) + others * each / (each + kappa)
    minus_slope = one / (one + kappa) ** 2 + others * each / (each + kappa) ** 2
    root = np.sqrt(kappa * np.maximum(ranks[:, None] - df, 0))
    return np.asarray(2 / math.pi * np.trapezoid(root * minus_slope * kappa, log_kappa, axis=1))


def gap(row: PowerLaw, ranks: Floats, layer: Layer) -> Floats:
    """How far the mean of the log lies below the log of the curve, [ranks].

    ``adapter_out`` is ``|A x|``, up to r = m: a sum of squares with the share of |x|^2 along one
    direction, as in :mod:`study.theory.log_gaps`. The others have no gap to this order.
    """
    share = min(1.0, 1 / (layer.r_align * layer.share)) if layer.r_align > 0 else 0.0
    if row.term != "aligned" or not share:
        return np.zeros(ranks.shape)
    return sum_gap(share, 2, ranks) / 2
