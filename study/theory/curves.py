"""Finite-rank curves: the expected size of a quantity at each rank, the slopes of a curve, and p*.

If the r iid components of a quantity have a mean other than zero, then
``E|sum|^2 = r (r - 1 + rho) |mean|^2``, exactly. docs/derivations.md derives the crossovers rho.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from study.errors import StudyError
from study.theory.asymptotics import PLAIN, family, predict
from study.theory.layers import UNKNOWN, Layer
from study.theory.log_gaps import Floats, product_gap, sum_gap
from study.theory.rows import Term
from study.theory.spectral import bend, gap
from study.vocabulary.optimizers import Family

MOMENTS = {"norm": 2, "rms": 2, "mean_abs": 1, "m4": 4, "descent": 1}
"""The power k of each statistic whose mean over the init is known in closed form. The curve is the
k-th root of that mean."""

USUAL = Layer(1000, 1000, r_align=5, r_sign=10, r_back=1, r_diag=0, kurtosis=0)
"""The layer if it is unknown. Geometric means over the measured layers are: r_sign 12 and r_align 6
on SmolLM2, r_sign 10 and r_align 5 on the tiny model."""


def crossover(term: str, kind: Family, layer: Layer, init: str = "A") -> float:
    """rho of ``r (r - 1 + rho)`` for ``aligned``, ``crossed`` or ``weight``; NaN if unknown."""
    fan = layer.d_in if init == "A" else layer.d_out
    if kind == "sign":
        return {
            "aligned": layer.r_sign,
            "crossed": layer.r_back * fan,
            "weight": math.pi / 2 * fan / layer.sharpness,
        }[term]
    if term != "aligned":
        return 2 + fan + layer.kurtosis
    return 2 + layer.r_align + layer.kurtosis * _diagonal(layer, init)


def _diagonal(layer: Layer, init: str) -> float:
    fan = layer.d_in if init == "A" else layer.d_out
    return layer.r_align / fan if layer.r_diag is None else layer.r_diag


TRACY_WIDOM_MEAN = -1.2065  # of the law for real matrices


def stable_rank(ranks: Floats, kind: Family, layer: Layer, init: str) -> Floats:
    """The stable rank of delta_w after lazy steps, ``(|delta_w| / sigma_1)^2``, [ranks].

    It depends neither on gamma nor on the learning rate, and it saturates. NaN without a closed
    form, as under sign-like rules, or if it depends on an unknown property of the layer.
    docs/derivations.md has both closed forms.
    """
    if kind == "linear":
        return np.asarray(ranks / (1 + layer.share * (ranks - 1)))
    if kind == "sign":
        return np.full(ranks.shape, math.nan)
    fan = layer.d_in if init == "A" else layer.d_out
    r = np.where(ranks <= layer.g_rank, ranks, math.nan)
    centre = math.sqrt(fan - 1) + np.sqrt(r)
    scale = centre * (1 / math.sqrt(fan - 1) + 1 / np.sqrt(r)) ** (1 / 3)
    return np.asarray(r * fan / (centre**2 + TRACY_WIDOM_MEAN * scale))


def curve(
    site: str, stat: str, ranks: ArrayLike, *, layer: Layer = UNKNOWN, **setting: Any
) -> Floats:
    """The size of a quantity at each rank, up to a factor independent of rank, [ranks].

    ``setting``: the arguments of :func:`study.theory.asymptotics.predict`. This is the root of the
    mean power over the init (see :data:`MOMENTS`). It is NaN if it depends on an unknown property
    of the layer.

    Exact for ``norm``, ``rms`` and ``descent``, and for every moment without a crossover.
    ``mean_abs`` and ``m4`` of activations share the curve of ``rms``, which assumes that entries
    are as Gaussian at rank 4 as at rank 4096. Sums of few products have heavier tails: this tilts
    the slope by about 0.01 at ranks from 4.
    """
    ranks = np.asarray(ranks, dtype=np.float64)
    found = predict(site, stat, **setting)
    if found.exponent is None or found.row is None:
        raise StudyError(
            f"no prediction for {stat} of {site} at step {setting['step']} under "
            f"{setting['optimizer']}: see study.theory.asymptotics"
        )
    values, init = ranks**found.exponent, setting.get("init", "A")
    if found.family == "spectral" and found.row.updates:
        adjust = setting.get("modifiers", PLAIN).adjust
        return np.asarray(values * bend(found.row, ranks, layer, init, adjust))
    if found.row.term == "none":
        return np.asarray(values)
    if found.row.term == "stable":
        return np.asarray(values * stable_rank(ranks, found.family, layer, init))
    rho = _rho(found.row.term, found.family, setting["optimizer"], layer, init)
    return np.asarray(values * np.sqrt(1 + (rho - 1) / ranks))


def log_bias(
    site: str, stat: str, ranks: ArrayLike, *, layer: Layer = UNKNOWN, **setting: Any
) -> Floats:
    """How far the mean of the log lies below the log of the curve, [ranks]; 0 if the share is not
    known."""
    ranks = np.asarray(ranks, dtype=np.float64)
    found = predict(site, stat, **setting)
    if found.row is None:
        return np.full(ranks.shape, math.nan)
    share, init = layer.share, setting.get("init", "A")
    if found.family == "spectral" and found.row.updates:
        return gap(found.row, ranks, layer)
    if found.row.term == "stable":
        return np.zeros(ranks.shape)
    if found.row.term != "none":
        rho = _rho(found.row.term, found.family, setting["optimizer"], layer, init)
        joint = layer.joint * _narrowing(layer, init)
        return product_gap(found.row.term, found.family, ranks, rho, share, joint)
    if not found.row.passes or math.isnan(share):
        return np.zeros(ranks.shape)
    power = found.row.spreads if stat == "descent" else MOMENTS[stat]
    return sum_gap(share ** (1 / found.row.passes), power, ranks) / MOMENTS[stat]


def _narrowing(layer: Layer, init: str) -> float:
    """The standard deviation of z^2 compared with that of a normal z, whose z^2 has variance 2.

    It differs from 1 if u is mostly a single input, as massive activations are.
    """
    fan = layer.d_in if init == "A" else layer.d_out
    beyond = _diagonal(layer, init) - layer.r_align / fan
    if not beyond > 0:
        return 1.0
    return math.sqrt(1 + layer.kurtosis * min(beyond, 1.0) / 2)


def mean_log_curve(site: str, stat: str, ranks: ArrayLike, **setting: Any) -> Floats:
    """The exponential of the mean of the log over draws, [ranks]: what data are compared with. The
    arguments are those of :func:`curve`."""
    bias = log_bias(site, stat, ranks, **setting)
    return np.asarray(curve(site, stat, ranks, **setting) * np.exp(-bias))


def _rho(term: Term, kind: Family, optimizer: str, layer: Layer, init: str) -> float:
    if optimizer != "adafactor":
        return crossover(term, kind, layer, init)
    fan = layer.d_in if init == "A" else layer.d_out
    return 2 + (2 / math.pi * layer.r_sign if term == "aligned" else fan)


def slope(values: ArrayLike, ranks: ArrayLike) -> float:
    """The least-squares slope of ``log(values)`` against log ``ranks``, linear in their p."""
    x = np.log(np.asarray(ranks, dtype=np.float64))
    y = np.log(np.asarray(values, dtype=np.float64))
    x = x - np.average(x)
    return float(np.sum(x * y) / np.sum(x * x))


def predicted_exponent(
    site: str, stat: str, ranks: Sequence[float], *, layer: Layer = UNKNOWN, **setting: Any
) -> float:
    """The slope that a fit over ``ranks`` should find: that of the mean of the log over draws.

    ``setting``: the arguments of :func:`study.theory.asymptotics.predict`. NaN without a prediction
    and for fewer than two distinct ranks. NaN also if the curve needs an unknown property of the
    layer: the asymptote would be off by up to 0.4 at ranks up to 256.
    """
    if predict(site, stat, **setting).exponent is None or len(set(ranks)) < 2:
        return math.nan
    return slope(mean_log_curve(site, stat, ranks, layer=layer, **setting), ranks)


def stable_exponent(
    site: str,
    stat: str,
    *,
    ranks: Sequence[float] | None = None,
    layer: Layer = UNKNOWN,
    **setting: Any,
) -> float | None:
    """p*: the p at which the quantity does not change with rank.

    ``setting``: the arguments of :func:`study.theory.asymptotics.predict` without p. ``ranks``:
    those over which the mean of the log has slope 0; None: the limit of large rank. A slope is
    linear in p with an integer factor, so two values of p determine it. None without a prediction,
    or if the quantity does not depend on p (B_update under a sign-like rule).
    """
    factor, at_zero = power_of_gamma(site, stat, **setting), predict(site, stat, p=0.0, **setting)
    if at_zero.exponent is None or not abs(factor) > 1e-12:
        return None
    if ranks is None:
        return at_zero.exponent / factor
    return predicted_exponent(site, stat, ranks, p=0.0, layer=layer, **setting) / factor


def power_of_gamma(site: str, stat: str, *, layer: Layer = UNKNOWN, **setting: Any) -> float:
    """k, if the quantity goes as ``gamma**k`` at fixed rank; NaN without a prediction."""
    flat, steep = (predict(site, stat, **(setting | {"p": p})).exponent for p in (0.0, 1.0))
    return math.nan if flat is None or steep is None else flat - steep


def move(rank: float, gamma: float, optimizer: str, layer: Layer = USUAL) -> float:
    """The rms change of the adapter's output by an update at rate 1, up to a constant; NaN if
    unknown."""
    law: dict[str, Any] = {"step": 1, "optimizer": optimizer, "p": 0.0, "layer": layer}
    [size] = curve("adapter_out", "rms", [rank], **law)
    return float(size) * gamma ** (2 if family(optimizer) == "linear" else 1)


def distance_to_infinite_rank(
    ranks: ArrayLike, layer: Layer, *, weighting: str, kind: Family = "linear", init: str = "A"
) -> Floats:
    """Relative distance of delta_w from its limit at infinite rank after the first step, [ranks].

    For q = 0, the limit is ``-lr alpha^2 v G`` under SGD (p = 1/2). Under a sign-like rule with eps
    -> 0 (p = 1), it is the mean of ``alpha b a^T`` over the rows of A. Either weighting gives
    sqrt((rho - 1) / r), the standard deviation of a mean of r iid terms, with rho of
    :func:`crossover`:

    - ``frobenius``: sqrt((D + 1 + kappa) / r) under SGD, sqrt((pi D / 2 - 1) / r) sign-like;
    - ``inputs``: each direction weighted by the second moment of the inputs. This is
      sqrt((r_align + 1 + kappa r_diag) / r) or sqrt((r_sign - 1) / r), far smaller on real text.
      Under Init[B] the alignment is on the output side, and O replaces D: under SGD the weighting
      makes no difference.
    """
    terms = {"frobenius": "weight", "inputs": "aligned" if init == "A" else "crossed"}
    return np.sqrt(
        (crossover(terms[weighting], kind, layer, init) - 1) / np.asarray(ranks, dtype=np.float64)
    )
