"""The Jensen gap: how far the mean of the log of a quantity lies below the log of its curve.

Data are means of logs over draws of A; a curve is the root of a mean power. The gap follows from
the rank, D, the kurtosis of A and the alignments, in a model of one factor (docs/derivations.md).
It needs no measured variance. It falls with the rank, so it changes a slope.
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
    """``(log E S - E log S) / 2`` of the square S of a quantity with the crossover ``rho``,
    [ranks]."""
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
