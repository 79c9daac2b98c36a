"""The table: each quantity's exponent in the rank, with its derivation and its source.

A row is a product of powers, ``r**rank * gamma**gammas * sd(A)**spreads``, so that its exponent is
``rank - gammas * p - spreads * q / 2``, and knows how many optimizer updates it contains, which is what clipping acts
on. The rows are those of Init[A]; Init[B] transposes the problem (A <-> B, x <-> g, G <-> G^T, D <-> O).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from study.errors import StudyError, unknown
from study.vocabulary.optimizers import OPTIMIZERS, Family
from study.vocabulary.thresholds import LAST_PREDICTED_STEP, LINEAR_UP_TO, SIGN_LIKE_FROM

FAMILIES: Mapping[str, Family] = {"linear": "linear", "sign": "sign"}

NO_STAT = {
    "max_abs": "an extreme value: it grows with the number of entries by logarithms, not by a power of the rank",
    "spectral": "the largest singular value of a random matrix bends where r crosses its dimensions: no power law",
    "stable_rank": "a ratio of two norms that saturates at the rank of the gradient: no power law",
    "rho": "A's motion beside its init is of the next order in the learning rate: none of it is in the lazy regime",
    **dict.fromkeys(
        ("r_align", "r_sign", "r_diag", "r_back"),
        "what a curve depends on: of the layer's gradients, not of its adapter",
    ),
    "nonfinite": "a count of failures has no exponent",
}
UNDERIVED = "no exponent has been derived for this quantity"
NOT_LAZY = "not lazy: gradients have moved with the adapter, and by how much depends on the rank"
ENTRYWISE = ("rms", "mean_abs", "m4")
STATS = ("norm", *ENTRYWISE, "descent", *NO_STAT)


@dataclass(frozen=True)
class Row:
    """``r**rank * gamma**gammas * sd(A)**spreads`` with ``updates`` optimizer updates inside, non-zero from ``first``.

    ``term`` names what the r iid components sum to where their mean is not 0: the finite-rank curve's crossover.
    """

    rank: float
    gammas: int
    spreads: int
    updates: int
    first: int
    derivation: str
    source: str
    term: Literal["none", "aligned", "crossed", "weight"] = "none"

    def exponent(self, p: float, q: float, clipped: bool = False) -> float:
        """The asymptotic exponent; ``clipped`` divides each update by the gradient's norm, gamma * sd(A) * sqrt(r)."""
        divided = self.updates * (1 / 2 - p - q / 2) if clipped else 0.0
        return self.rank - self.gammas * p - self.spreads * q / 2 - divided


PAPER = "Kalajdzievski 2023, arXiv 2312.03732, appendix A"
DERIVED = "derived here"
ISSERLIS = f"derived here: fourth moments of A by Isserlis' theorem; the mean alone: {PAPER}"
ARCSINE = (
    "derived here: E[sign(u) v] by Price's theorem, E[sign(u) sign(v)] by Sheppard's arcsine law"
)


def _product(
    term: Literal["aligned", "crossed", "weight"], gammas: int, derivation: str, source: str
) -> Row:
    """A row in which A meets its own image in B, so that r components add up in one direction; 0 before step 1."""
    return Row(1, gammas, gammas, 1, 1, derivation, source, term)


_BASE = Row(0, 0, 0, 0, 0, "the base, unchanged to first order in lr whatever gamma", DERIVED)
_ANY: dict[str, Row] = {
    "adapter_in": _BASE,
    "layer_out": _BASE,
    "layer_out_grad": _BASE,
    "A": Row(1 / 2, 0, 1, 0, 0, "r D iid entries of variance v, moved by order lr", DERIVED),
    "B_grad": Row(
        1 / 2, 1, 1, 0, 0, "gamma G A^T: r iid columns, E|.|^2 = gamma^2 v r |G|^2", PAPER
    ),
    "adapter_grad": Row(
        1 / 2, 1, 1, 0, 0, "B_grad: A_grad is 0 at step 0, then of order lr beside it", PAPER
    ),
}
SGD: dict[str, Row] = {
    **_ANY,
    "B": Row(1 / 2, 1, 1, 1, 1, "-lr gamma sum_s G_s A^T, linear in B_grad", PAPER),
    "B_update": Row(1 / 2, 1, 1, 1, 0, "lr B_grad", DERIVED),
    "adapter_update": Row(
        1 / 2, 1, 1, 1, 0, "B_update: A_update is of order lr beside it", DERIVED
    ),
    "A_grad": Row(1 / 2, 2, 1, 1, 1, "gamma B^T G = -lr gamma^2 A G^T G: r iid rows", PAPER),
    "A_update": Row(1 / 2, 2, 1, 2, 1, "lr A_grad", DERIVED),
    "descent": Row(
        1, 2, 2, 1, 0, "lr |B_grad|^2, in mean lr gamma^2 v r |G|^2: no crossover", DERIVED
    ),
    "adapter_out": _product(
        "aligned",
        2,
        "-lr gamma^2 G A^T A x, E|.|^2 = (lr gamma^2 v |G x|)^2 r (r + 1 + r_align)",
        ISSERLIS,
    ),
    "delta_w": _product(
        "weight", 2, "-lr gamma^2 G A^T A, E|.|^2 = (lr gamma^2 v |G|)^2 r (r + 1 + D)", ISSERLIS
    ),
    "adapter_in_grad": _product(
        "crossed",
        2,
        "-lr gamma^2 A^T A G^T g, E|.|^2 = (lr gamma^2 v |G^T g|)^2 r (r + 1 + D)",
        ISSERLIS,
    ),
}
SIGN: dict[str, Row] = {
    **_ANY,
    "B": Row(1 / 2, 0, 0, 1, 1, "every entry moves by about lr a step: lr sqrt(r O)", DERIVED),
    "B_update": Row(1 / 2, 0, 0, 1, 0, "every entry moves by about lr: lr sqrt(r O)", DERIVED),
    "adapter_update": Row(
        1 / 2, 0, 0, 1, 0, "lr sqrt(r O), then lr sqrt(r (O + D)) from step 1", DERIVED
    ),
    "A_grad": Row(1 / 2, 1, 0, 1, 1, "gamma B^T G = -lr gamma sign(A G^T) G: r iid rows", DERIVED),
    "A_update": Row(
        1 / 2,
        0,
        0,
        2,
        1,
        "every entry moves by about lr once A_grad is not 0: lr sqrt(r D)",
        DERIVED,
    ),
    "descent": Row(
        1,
        1,
        1,
        1,
        0,
        "lr |B_grad|_1 = lr gamma sum_k |G a_k|_1: r iid terms, no crossover",
        DERIVED,
    ),
    "adapter_out": _product(
        "aligned", 1, "-lr gamma sign(G A^T) A x, E|.|^2 of r (r - 1 + r_sign)", ARCSINE
    ),
    "delta_w": _product(
        "weight", 1, "-lr gamma sign(G A^T) A, E|.|^2 of r (r - 1 + pi D/2)", ARCSINE
    ),
    "adapter_in_grad": _product(
        "crossed",
        1,
        "-lr gamma A^T sign(A G^T) g, E|.|^2 of r (r - 1 + r_back D), r_back mostly 1 to pi/2",
        ARCSINE,
    ),
}

PAPER_CLAIMS = {
    "adapter_out": "theorem 3.2, condition 1: Theta(gamma^2 r), exponent 1 - 2p, at every step; proved for SGD",
    "adapter_in_grad": "theorem 3.2, condition 2: Theta(gamma^2 r), exponent 1 - 2p, as condition 1; proved for SGD",
    "adapter_grad": "figures 3 and 4: level at gamma = alpha/sqrt(r), collapsing at alpha/r, under AdamW and SGD alike",
}

RANK_SIZED = (
    "A",
    "B",
    "A_grad",
    "B_grad",
    "A_update",
    "B_update",
    "adapter_grad",
    "adapter_update",
)
"""Sites whose number of entries grows as r, so that rms, mean_abs and m4 lie 1/2 below the norm."""

MIRROR = {
    "adapter_out": "adapter_in_grad",
    "adapter_in_grad": "adapter_out",
    "adapter_in": "layer_out_grad",
}
MIRROR |= {f"A{part}": f"B{part}" for part in ("", "_grad", "_update")}
MIRROR |= {f"B{part}": f"A{part}" for part in ("", "_grad", "_update")}
"""A site under Init[B] behaves as this one does under Init[A]; the rest are their own mirror image."""

SITES = tuple(site for site in SGD if site != "descent")
DECAYS = ("none", "decoupled", "coupled")
CLIPS = ("never", "always", "some")


@dataclass(frozen=True)
class Modifiers:
    """What else acts on an update. LoRA+ has no entry: a learning rate ratio is a constant factor, free of the rank.

    ``decay``: weight decay. It is of order lr**2 on the trained factor, so nothing changes, except the update of the
    factor that was drawn at random, which is then mostly ``-lr decay A``. ``coupled`` (added to the gradient) under a
    sign-like rule makes A's update ``lr sign(A)``, the loss's signal gone: refused.
    ``clip``: by global norm at every step and rank (``always``), at some (``some``: ranks astride the threshold) or
    ``never``. Under SGD each update is divided by the gradient's norm; a sign-like rule does not see it.
    ``eps_ratio``: rms(gradient) / eps of the factor in question, at the rank where it is nearest 1. At 100 and above
    Adam is sign-like, at 1/100 and below linear in the gradient (SGD's exponents), between them neither.
    ``lazy``: false where actual and linearised loss change part by more than a tenth.

    Raises :class:`StudyError` for a value outside the choices.
    """

    decay: str = "none"
    clip: str = "never"
    eps_ratio: float = math.inf
    lazy: bool = True

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise unknown("decay", self.decay, DECAYS)
        if self.clip not in CLIPS:
            raise unknown("clip", self.clip, CLIPS)
        if not self.eps_ratio >= 0:
            raise StudyError(
                f"eps_ratio={self.eps_ratio} is no ratio of gradient to eps: give a number from 0 to inf"
            )


PLAIN = Modifiers()


@dataclass(frozen=True)
class Prediction:
    """The asymptotic exponent of a quantity, or ``None`` and the ``reason`` why nothing is predicted.

    ``paper`` is what Kalajdzievski 2023 claims of the same quantity, where it does. ``row``, and the family whose row
    it is, are what the finite-rank curve is built from.
    """

    exponent: float | None
    source: str
    derivation: str
    reason: str | None = None
    paper: str | None = None
    row: Row | None = None
    family: Family = "linear"


def family(optimizer: str) -> Family:
    """The family of an optimizer; a family's own name stands for itself.

    Predictions for Adafactor are without parameter scaling. torch's Adafactor always scales, and
    transformers' does by default. With it, B moves by lr * 1e-3 while rms(B) is below that (a
    constant, so B's exponents stand), and the exponent of A's update is lower by q/2.

    Raises :class:`StudyError` for an unknown name.
    """
    if optimizer in FAMILIES:
        return FAMILIES[optimizer]
    if optimizer in OPTIMIZERS:
        return OPTIMIZERS[optimizer].family
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
    """The asymptotic exponent of ``stat`` at ``site`` in the rank, as r grows at a fixed step.

    ``p``: gamma = alpha r^-p. ``q``: the variance of the factor drawn at random goes as r^-q. (Kaiming over a B of
    shape [O, R], whose fan-in is the rank, has q = 1.) ``descent`` is a stat of the site ``adapter_update``.

    Raises :class:`StudyError` for an unknown site, stat, optimizer or init.

    >>> predict("adapter_out", "rms", step=1, optimizer="adamw", p=1.0).exponent
    0.0
    """
    if site not in SITES:
        raise unknown("site", site, SITES)
    if stat not in STATS:
        raise unknown("stat", stat, STATS)
    if init not in ("A", "B"):
        raise unknown("init", init, ("A", "B"))
    kind = family(optimizer)
    if kind == "sign" and modifiers.eps_ratio <= LINEAR_UP_TO:
        kind = "linear"
    quantity = "descent" if stat == "descent" else MIRROR.get(site, site) if init == "B" else site
    row = (SGD if kind == "linear" else SIGN)[quantity]

    reason = _why_not(site, stat, quantity, row, step, kind, modifiers)
    if reason is not None:
        return Prediction(None, row.source, row.derivation, reason, PAPER_CLAIMS.get(site))
    if quantity == "A_update" and step == 0:  # only decay acts: its update is lr decay A
        row = Row(1 / 2, 0, 1, 0, 0, "only decay moves it at step 0: lr decay A", DERIVED)

    clipped = kind == "linear" and modifiers.clip == "always"
    derivation = row.derivation
    if clipped and row.updates:
        derivation += (
            f"; clipping divides it by (gamma sd(A) sqrt(r))^{row.updates}, once an update"
        )
    exponent = row.exponent(p, q, clipped)
    if site in RANK_SIZED and stat in ENTRYWISE:
        exponent -= 1 / 2
        derivation += "; over a number of entries that grows as r: 1/2 below the norm"
    if init == "B":
        derivation = f"transposed (A <-> B, x <-> g, G <-> G^T, D <-> O): {derivation}"
    return Prediction(
        exponent, row.source, derivation, paper=PAPER_CLAIMS.get(site), row=row, family=kind
    )


def _why_not(
    site: str, stat: str, quantity: str, row: Row, step: int, kind: Family, modifiers: Modifiers
) -> str | None:
    """Why nothing is predicted, or ``None``; ``quantity`` is the site as Init[A] would call it."""
    if stat in NO_STAT:
        return NO_STAT[stat]
    if stat == "descent" and site != "adapter_update":
        return "descent is a statistic of the site adapter_update"
    if not 0 <= step <= LAST_PREDICTED_STEP:
        return f"predictions are for steps 0 to {LAST_PREDICTED_STEP}: later, the factors' own motion is no longer small"
    decayed = modifiers.decay != "none"
    if step < row.first and not (quantity == "A_update" and decayed):
        return f"it is 0 until step {row.first}: the trained factor starts at 0"
    if row.updates == 0:
        return None if modifiers.lazy or step == 0 or (quantity == "A" and step == 1) else NOT_LAZY
    if kind == "sign" and modifiers.decay == "coupled":
        return "coupled weight decay under a sign-like rule replaces the random factor's signal by its own sign"
    if kind == "sign" and modifiers.eps_ratio < SIGN_LIKE_FROM:
        return f"gradients are {modifiers.eps_ratio:g} times eps: neither sign-like (100) nor linear (1/100)"
    mixed = quantity == "adapter_update" or (quantity == "A_update" and step > 0)
    if kind == "linear" and decayed and mixed:
        return "decay's part, lr decay A, and the gradient's part scale differently, and either may be the larger"
    # A sign-like rule forgets the scale of one gradient, but not the ratio of two of which one was clipped.
    gradients = step + (site.endswith("_update") and 1)
    if modifiers.clip == "some" and (kind == "linear" or gradients > 1):
        return "the ranks lie astride the clipping threshold: two laws in one fit"
    # At step 0 nothing has moved; B and delta_w at step 1 hold one update, made at the init.
    if not modifiers.lazy and step > 0 and not (step == 1 and quantity in ("B", "delta_w")):
        return NOT_LAZY
    return None
