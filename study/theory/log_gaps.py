"""The Jensen gap: how far the mean of the log of a quantity lies below the log of its curve.

Data are means of logs over draws of A; a curve is the root of a mean power. The gap between the two
falls with the rank, so it changes a slope (by 0.1 at most over ranks 4 to 256). It follows from the
rank, D, the excess kurtosis of A and the alignments. It needs no measured variance.

**One-factor model.** Let ``P = G^T G`` be one direction u with a share ``alpha`` of |G|^2, plus a
rest spread over many directions, and likewise ``E x x^T`` with a share ``beta`` of E|x|^2. Write
``z_k`` for component k of A along u, in units of its standard deviation: iid normal, for a u that
mixes many inputs. The rest of a component averages out. What varies is a function of the z alone:

===========================  =======================================================================
quantity                     its power, up to a factor; ``Q = sum_k z_k^2``, ``T = sum_k |z_k|``
===========================  =======================================================================
``B_grad``, SGD's ``B``      ``alpha Q + (1 - alpha) r``, the square of the norm. Other moments:
                             ``sum_k h_k^power``, ``h_k^2 = alpha z_k^2 + 1 - alpha``
SGD's ``A_grad``             the same with ``sqrt(alpha)``: it contains G twice
SGD's ``descent``            ``alpha Q + (1 - alpha) r``, without a root
sign-like ``descent``        ``sum_k h_k``
SGD, ``aligned``             ``alpha beta Q^2 + (alpha (1-beta) + (1-alpha) beta) Q
                             + (1-alpha) (1-beta) r``, with ``alpha beta = 1 / r_align``
SGD, ``weight``              ``alpha Q (Q + D - 1) + (1 - alpha) r (r + 1 + D)``
SGD, ``crossed``             the same with ``sqrt(alpha)``: it is weighted by G once more
sign-like, all three         ``(pi/2) T^2 + (rho - pi/2) r chi_m^2 / m``, ``m = 2 rho / pi``: the
                             rest of x has about m directions
===========================  =======================================================================

The means of logs are integrals over one or two variables, computed numerically. T is taken as a
gamma variable with its own mean and variance. An update of fixed size (sign-like ``B_update``), the
frozen base and A itself have no gap to this order. Always clipped, an update is divided by the norm
over all layers, whose own gap is neglected.

``alpha`` is ``r_eff^(-1/2)`` (:class:`~study.theory.layers.Layer`). If r_eff was not measured, it
is taken as ``sqrt(r_align)``: the geometric mean of 1, which holds if all of G is one direction,
and of ``r_align``, which holds if G has the spectrum of x. On the tiny model (14 layers, ranks 4 to
256) this changes the slope of SGD's ``adapter_out`` by 0.003 in the mean over layers, and by up to
0.011 in one layer.

For ``aligned``, two more numbers narrow Q. If G and x have several directions in common, Q has
``r r_joint`` terms (1 if it was not measured: on the tiny model r_joint is 1 in 11 of 14 layers;
without it a slope can be too flat by 0.02). If u is mostly a single input, the kurtosis matters;
``r_diag`` tells.

This is an approximation, like the delta method but not limited to small gaps. Monte Carlo
(``tests/theory/test_theory_log_bias.py``) finds its slopes within 0.01 over ranks 4 to 256.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from study.theory.rows import Term
from study.vocabulary.optimizers import Family

Floats = NDArray[np.float64]
ROUND = 2
"""Decimals of a share. An error of 0.005 in it changes a slope by less than 0.001."""


def sum_gap(share: float, power: int, ranks: ArrayLike) -> Floats:
    """``log E Y - E log Y`` of ``Y = sum_k (share z_k^2 + 1 - share)^(power/2)``, [ranks].

    From ``E log Y = int (e^-t - E e^(-t Y)) dt / t`` (Frullani), where the expectation is a power.
    """
    known = np.asarray(ranks, float)
    return np.array([_sum_gap(round(share, ROUND), power, float(r)) for r in known.ravel()])


@lru_cache(maxsize=10_000)
def _sum_gap(share: float, power: int, rank: float) -> float:
    log_z = np.linspace(-14.0, 2.3, 120)
    weight = np.exp(log_z - np.exp(2 * log_z) / 2)  # the density of log |z|, up to a factor
    weight /= weight.sum()
    term = (share * np.exp(2 * log_z) + 1 - share) ** (power / 2)
    term /= weight @ term
    log_t = np.linspace(-24.0, 60.0, 337)
    t = np.exp(log_t)
    transform = (np.exp(-np.outer(t / rank, term)) @ weight) ** rank
    return float(-np.trapezoid(np.exp(-t) - transform, log_t))


def product_gap(
    term: Term, kind: Family, ranks: ArrayLike, rho: float, share: float, joint: float = 1.0
) -> Floats:
    """``(log E S - E log S) / 2`` of the square S of a quantity with a crossover, [ranks].

    ``rho``: the crossover of the curve. The gap is NaN without it, and 0 without a share.
    """
    known = np.asarray(ranks, float)
    if math.isnan(rho):
        return np.full(known.shape, math.nan)
    if kind == "sign":
        return np.array([_sign_gap(float(r), float(rho)) for r in known.ravel()])
    if math.isnan(share):
        return np.zeros(known.shape)
    shares = round(share, ROUND), round(joint, ROUND)
    return np.array([_linear_gap(term, float(r), float(rho), *shares) for r in known.ravel()])


@lru_cache(maxsize=10_000)
def _linear_gap(term: Term, rank: float, rho: float, share: float, joint: float) -> float:
    q, weight = _gamma(rank / 2 / (joint**2 if term == "aligned" else 1.0))
    q = q * rank
    if term == "aligned":
        alignment = max(rho - 2, 1.0)
        share = min(max(share, 1 / alignment), 1.0)
        beta = 1 / (alignment * share)
        mixed = share * (1 - beta) + (1 - share) * beta
        rest = (1 - share) * (1 - beta)
        square = q**2 / alignment + mixed * q + rest * rank
    else:
        alpha = share if term == "weight" else math.sqrt(share)
        square = alpha * q * (q + rho - 3) + (1 - alpha) * rank * (rank + rho - 1)
    return float(math.log(weight @ square) - weight @ np.log(square)) / 2


@lru_cache(maxsize=10_000)
def _sign_gap(rank: float, rho: float) -> float:
    rho = max(rho, math.pi / 2)
    total, weight_T = _gamma(rank / (math.pi / 2 - 1))
    rest, weight_m = _gamma(rho / math.pi)
    square = rank * total[:, None] ** 2 + (rho - math.pi / 2) * rest
    log_mean = math.log(weight_T @ square @ weight_m)
    return float(log_mean - weight_T @ np.log(square) @ weight_m) / 2


@lru_cache(maxsize=1000)
def _gamma(shape: float) -> tuple[Floats, Floats]:
    """Points and weights of a gamma variable of mean 1: the trapezoidal rule in its logarithm."""
    low = -12 / math.sqrt(shape) - 24 / shape
    log_y = np.linspace(low, math.log1p(12 / math.sqrt(shape) + 24 / shape), 160)
    log_weight = shape * (log_y - np.exp(log_y))
    weight = np.exp(log_weight - log_weight.max())
    return np.exp(log_y), weight / weight.sum()
