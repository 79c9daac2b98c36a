"""Asymptotic exponents: the prediction for a quantity, its modifiers, and when there is none."""

import math
from dataclasses import dataclass
from typing import get_args

from study.errors import unknown
from study.theory.rows import DECAYED_A, MIRROR, RANK_SIZED, ROWS, PowerLaw, adjusted_exponent
from study.vocabulary.optimizers import ADJUSTMENTS, OPTIMIZERS, Family
from study.vocabulary.quantities import SITES, STATS
from study.vocabulary.thresholds import LAST_PREDICTED_STEP, LINEAR_UP_TO, SIGN_LIKE_FROM

FAMILIES: tuple[Family, ...] = get_args(Family)
CLIPS = ("never", "always", "some")

ENTRYWISE = ("rms", "mean_abs", "m4")
OF_ONE_SITE = {"descent": "adapter_update", "stable_rank": "delta_w"}
"""Stats with their own row, and the only site that has a prediction."""
PREDICTED = ("norm", *ENTRYWISE, *OF_ONE_SITE)
"""Stats that scale as a power of the rank, or saturate. The others do not. ``max_abs`` grows with
the log of the number of entries. ``spectral`` bends where r crosses its dimensions. ``rho`` is of
the next order in the learning rate. ``nonfinite`` is a count. ``mean_norm`` has not been derived at
finite rank. Alignments are properties of the layer's gradients."""


@dataclass(frozen=True)
class Modifiers:
    """Other effects on an update.

    LoRA+ needs no entry: its ratio of learning rates is a constant factor, independent of rank.

    - ``decay``: weight decay: ``none``, ``decoupled`` or ``coupled``. Its effect on the trained
      factor is of order lr**2, which changes nothing here. The exception is the update of the
      random factor, which becomes mostly ``-lr decay A``. Under a sign-like rule, coupled decay
      (added to the gradient) turns A's update into ``lr sign(A)``, which no longer depends on the
      loss: nothing is predicted;
    - ``clip``: clipping by global norm at every step and rank (``always``), at some of them
      (``some``), or ``never``. Under a linear rule each clipped update is divided by the gradient
      norm. A sign-like rule is not affected;
    - ``eps_ratio``: rms(gradient) / eps of the factor in question, at the rank where it is nearest
      to 1. Adam is sign-like at 100 and above, linear in the gradient (the exponents of SGD) at
      1/100 and below, and neither in between;
    - ``adjust``: the factor of a spectral rule on the update of a matrix, by its shape
      (:data:`study.vocabulary.optimizers.ADJUSTMENTS`), or ``none``;
    - ``lazy``: whether the actual and the linearised loss change agree within a tenth.
    """

    decay: str = "none"
    clip: str = "never"
    eps_ratio: float = math.inf
    adjust: str = ADJUSTMENTS[0]
    lazy: bool = True


PLAIN = Modifiers()


@dataclass(frozen=True)
class Prediction:
    """The asymptotic exponent of a quantity, or None; the ``row`` and ``family`` that its
    finite-rank curve is built from."""

    exponent: float | None = None
    row: PowerLaw | None = None
    family: Family = "linear"


def family(optimizer: str) -> Family:
    """The family of an optimizer, or of a family's name.

    Predictions for Adafactor are without parameter scaling, which torch's always has and
    transformers' has by default. With it, B moves by lr * 1e-3 while rms(B) is below that, so B's
    exponents hold. The exponent of A's update is lower by q/2.
    """
    if optimizer in OPTIMIZERS:
        return OPTIMIZERS[optimizer].family
    for name in FAMILIES:
        if optimizer == name:
            return name
    raise unknown("optimizer", optimizer, (*OPTIMIZERS, *FAMILIES))


def predict(
    site: str,
    stat: str,
    *,
    step: int,
    optimizer: str,
    p: float,
    q: float = 0.0,
    init: str = "A",
    modifiers: Modifiers = PLAIN,
) -> Prediction:
    """The asymptotic scaling exponent of ``stat`` at ``site`` with rank, at a fixed step.

    ``p``: gamma = alpha r^-p. ``q``: the variance of the random factor scales as r^-q. (Kaiming on
    a B of shape [O, R], whose fan-in is the rank, has q = 1.) ``descent`` is a stat of the site
    ``adapter_update``.

    A site or stat of the vocabulary that has no row here gets a prediction without an exponent.

    >>> predict("adapter_out", "rms", step=1, optimizer="sign", p=1.0).exponent
    0.0
    """
    for what, name, known in (("site", site, SITES), ("stat", stat, STATS)):
        if name not in known:
            raise unknown(what, name, known)
    if init not in ("A", "B"):
        raise unknown("init", init, ("A", "B"))
    kind = family(optimizer)
    if kind == "sign" and modifiers.eps_ratio <= LINEAR_UP_TO:
        kind = "linear"
    # The site as Init[A] names it.
    quantity = stat if stat in OF_ONE_SITE else MIRROR.get(site, site) if init == "B" else site
    row = ROWS[kind].get(quantity)
    if row is None or stat not in PREDICTED:
        return Prediction()
    if not _holds(site, stat, quantity, row, step, kind, modifiers):
        return Prediction()
    if quantity == "A_update" and step == 0:
        row = DECAYED_A
    clipped = kind == "linear" and modifiers.clip == "always"
    exponent = row.exponent(p, q, clipped)
    if site in RANK_SIZED and stat in ENTRYWISE:
        exponent -= 1 / 2
    if kind == "spectral" and row.updates:
        exponent += adjusted_exponent(row, init, modifiers.adjust)
    return Prediction(exponent, row, kind)


def _holds(
    site: str,
    stat: str,
    quantity: str,
    row: PowerLaw,
    step: int,
    kind: Family,
    modifiers: Modifiers,
) -> bool:
    """Whether the law of ``row`` holds. ``quantity`` is the site as Init[A] names it."""
    if OF_ONE_SITE.get(stat, site) != site or not 0 <= step <= LAST_PREDICTED_STEP:
        return False
    decayed = modifiers.decay != "none"
    if step < row.first and not (quantity == "A_update" and decayed):  # it is 0 until then
        return False
    if row.updates == 0:
        return modifiers.lazy or step == 0 or (quantity == "A" and step == 1)
    # Coupled decay under a sign-like rule replaces the random factor's gradient by its own sign.
    if kind == "sign" and modifiers.decay == "coupled":
        return False
    if kind == "sign" and modifiers.eps_ratio < SIGN_LIKE_FROM:  # neither sign-like nor linear
        return False
    mixed = quantity == "adapter_update" or (quantity == "A_update" and step > 0)
    # The distribution of the entries of an orthogonalised update changes with the rank. Muon's
    # factors on the updates of A and B differ, and either may be the larger.
    unknown_law = stat in ("mean_abs", "m4") or (quantity == "adapter_update" and step > 0)
    if kind == "spectral" and unknown_law:
        return False
    # lr decay A and the gradient's part of the update scale differently; either may be the larger.
    if kind in ("linear", "spectral") and decayed and mixed:
        return False
    # A sign-like rule ignores the scale of one gradient, but not the ratio of a clipped gradient
    # to one that was not clipped.
    gradients = step + (site.endswith("_update") and 1)
    if modifiers.clip == "some" and (kind == "linear" or gradients > 1):
        return False
    # At step 0 nothing has moved. B and delta_w at step 1 hold one update, made at the init.
    return modifiers.lazy or step == 0 or (step == 1 and quantity in ("B", "delta_w"))
