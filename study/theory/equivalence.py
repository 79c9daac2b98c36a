"""Runs that are the same, and runs whose first update is the same: what to set at another rank.

**Exactly the same.** At one rank, two rules with the same gamma are the same run
(:func:`converted_alpha`). At one gamma, the factors may be scaled too (:func:`rescaling`). Between
two ranks nothing is exactly the same: A has another number of random rows.

**The same first update.** A quantity has the size ``gamma**g * lr**u * C(r)`` to leading order in
the learning rate. The powers are those of its :class:`~study.theory.rows.PowerLaw`, and C is its
finite-rank curve at p = 0. :func:`growth` is its ratio between two ranks. To undo it, divide gamma
by its root of order g, or lr by its root of order u.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from study.errors import StudyError, unknown
from study.theory.asymptotics import family, predict
from study.theory.curves import curve
from study.theory.layers import Layer
from study.theory.rows import PowerLaw


@dataclass(frozen=True)
class Kept:
    """What two runs can have in common. ``step`` is the row of the tables that holds it."""

    label: str
    site: str
    stat: str
    step: int


QUANTITIES: dict[str, Kept] = {
    "descent": Kept("descent of the first update", "adapter_update", "descent", 0),
    "grad_norm": Kept("gradient norm at step 0", "adapter_grad", "norm", 0),
    "adapter_out": Kept("adapter_out after the first update", "adapter_out", "rms", 1),
}

MOST_FEATURES = 1e9
"""Stands for an unknown number of features, as an upper bound."""
ALIGNED = Layer(1, 1, r_align=1, r_sign=math.pi / 2, r_back=1, r_diag=0, kurtosis=0)
UNALIGNED = Layer(
    *(MOST_FEATURES, MOST_FEATURES),
    r_align=MOST_FEATURES,
    r_sign=MOST_FEATURES,
    r_back=1,
    r_diag=0,
    kurtosis=0,
)
"""The two ends of what an unknown layer can be. See :class:`~study.theory.layers.Layer`."""
USUAL = Layer(1000, 1000, r_align=5, r_sign=10, r_back=1, r_diag=0, kurtosis=0)
"""Stands for an unknown layer. Geometric means over layers of the measured numbers are: r_sign 12
and r_align 6 on SmolLM2, r_sign 10 and r_align 5 on the tiny model."""


@dataclass(frozen=True)
class Rescaling:
    """Factors on the settings of a run that leave its ``gamma B A`` unchanged at every step.

    ``decay_a`` and ``decay_b`` are for decoupled weight decay.
    """

    alpha: float
    init_a: float
    lr_a: float
    lr_b: float
    eps_a: float
    eps_b: float
    decay_a: float
    decay_b: float


def converted_alpha(alpha: float, rank: float, p: float, new_p: float) -> float:
    """The alpha with which ``alpha r**-new_p`` is the gamma of the old rule.

    >>> converted_alpha(16, 64, p=0.5, new_p=1.0)
    128.0
    """
    return alpha * float(rank) ** (new_p - p)


def rescaling(optimizer: str, a: float, b: float) -> Rescaling:
    """The run whose A is ``a`` times and whose B is ``b`` times as large, with the same product.

    For B = 0 at the start, only A's init changes. Gamma is divided by ``a b``, so the gradient of A
    is divided by ``a`` and that of B by ``b``. A sign-like update ignores that, and A must move
    ``a`` times as far: its rate is multiplied by ``a``. A linear update is divided by ``a`` too, so
    its rate is multiplied by ``a**2``. Adam's eps is compared with the gradient, and is divided by
    ``a``.

    Exact for one eps of both factors only if it is 0. Clipping by the global norm keeps its effect
    only if ``a == b`` and its limit is divided by ``a``. Derived here.

    Raises :class:`StudyError` for an unknown optimizer.
    """
    power = 2 if family(optimizer) == "linear" else 1
    return Rescaling(
        alpha=1 / (a * b),
        init_a=a,
        lr_a=a**power,
        lr_b=b**power,
        eps_a=1 / a,
        eps_b=1 / b,
        decay_a=a**-power,
        decay_b=b**-power,
    )


def growth(
    quantity: str,
    ranks: tuple[float, float],
    gammas: tuple[float, float],
    optimizer: str,
    *,
    q: float = 0.0,
    init: str = "A",
    layers: Sequence[Layer] = (ALIGNED,),
) -> float:
    """The size of a quantity at the new rank and gamma over its size at the old ones.

    At one learning rate: the geometric mean over layers of curves, each a mean over draws of A; NaN
    if a curve is not known. Raises :class:`StudyError` for a quantity that is not one of
    :data:`QUANTITIES`, an unknown optimizer, and without a prediction.
    """
    what = _quantity(quantity)
    setting: dict[str, Any] = {"step": what.step, "optimizer": optimizer, "p": 0.0}
    setting |= {"q": q, "init": init}
    logs = []
    for layer in layers:
        old, new = np.log(curve(what.site, what.stat, ranks, layer=layer, **setting))
        logs.append(new - old)
    powers = row_of(quantity, optimizer, init)
    return float(np.exp(np.mean(logs))) * (gammas[1] / gammas[0]) ** powers.gammas


def row_of(quantity: str, optimizer: str, init: str = "A") -> PowerLaw:
    """The powers of gamma and of the learning rate in a quantity.

    Raises :class:`StudyError` for an unknown quantity or optimizer, and without a prediction.
    """
    what = _quantity(quantity)
    found = predict(what.site, what.stat, step=what.step, optimizer=optimizer, p=0.0, init=init)
    if found.row is None:
        raise StudyError(f"no prediction for {what.label} under {optimizer}")
    return found.row


def _quantity(name: str) -> Kept:
    if name not in QUANTITIES:
        raise unknown("quantity", name, QUANTITIES)
    return QUANTITIES[name]
