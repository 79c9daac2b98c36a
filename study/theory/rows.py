"""The table of exponents: how each quantity scales with rank, with its derivation.

A row is a product of powers, ``r**rank * gamma**gammas * sd(A)**spreads``, so its scaling exponent
is ``rank - gammas * p - spreads * q / 2``. It also counts the optimizer updates that the quantity
contains, because clipping rescales each update. The rows are for Init[A]. Init[B] transposes the
problem (A <-> B, x <-> g, G <-> G^T, D <-> O); :data:`MIRROR` says which row applies.

Sources: B_grad, adapter_grad, and B and A_grad under linear rules are of Kalajdzievski 2023 (arXiv
2312.03732, appendix A), as are the means of the products under linear rules; their fourth moments
are by Isserlis' theorem. The products under sign-like rules are by Price's theorem, E[sign(u) v],
and Sheppard's arcsine law, E[sign(u) sign(v)]. docs/derivations.md derives all others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from study.vocabulary.optimizers import Family

Term = Literal[
    "none", "aligned", "crossed", "weight", "stable", "trained", "random", "reached", "nuclear"
]
"""Which crossover a finite-rank curve has, if any; :func:`study.theory.curves.crossover` gives its
value. Under a spectral rule, :mod:`study.theory.spectral` has the curve of each term, and the last
four occur nowhere else. ``stable`` is a stable rank (:func:`study.theory.curves.stable_rank`)."""


@dataclass(frozen=True)
class PowerLaw:
    """One quantity: ``r**rank * gamma**gammas * sd(A)**spreads``.

    - ``updates``: the number of optimizer updates in the product;
    - ``first``: the first step at which the quantity is not zero;
    - ``term``: the crossover of the finite-rank curve. It exists if the r iid components of the
      quantity have a mean other than zero;
    - ``passes``: how often a quantity without a crossover multiplies the random factor by G. The
      spread over draws biases its log (:mod:`study.theory.log_gaps`); 0: no bias.
    """

    rank: float
    gammas: int
    spreads: int
    updates: int
    first: int
    derivation: str
    term: Term = "none"
    passes: int = 0

    def exponent(self, p: float, q: float, clipped: bool = False) -> float:
        """The asymptotic exponent. ``clipped`` divides each update by the gradient norm, which
        scales as ``gamma * sd(A) * sqrt(r)``."""
        divided = self.updates * (1 / 2 - p - q / 2) if clipped else 0.0
        return self.rank - self.gammas * p - self.spreads * q / 2 - divided


def adjusted_exponent(law: PowerLaw, init: str, adjust: str) -> float:
    """The exponent of a spectral rule's factor for a matrix's shape, at ranks above its features.

    ``adjust``: see :class:`study.theory.asymptotics.Modifiers`.
    """
    of_B = (law.term == "random") == (init == "B")
    return 0.0 if adjust == "none" or (adjust == "original" and of_B) else 1 / 2


def _product(term: Term, gammas: int, derivation: str, rank: float = 1) -> PowerLaw:
    """A product of A with its own image in B: r components add up in one direction. 0 at step 0.

    ``derivation``: the product, and its mean square E|.|^2, up to a factor if it is after a colon.
    """
    return PowerLaw(rank, gammas, gammas, 1, 1, derivation, term)


_BASE = PowerLaw(0, 0, 0, 0, 0, "the frozen base's own: changes are of order lr for any gamma")
_ANY: dict[str, PowerLaw] = {
    "adapter_in": _BASE,
    "layer_out": _BASE,
    "layer_out_grad": _BASE,
    "stable_rank": PowerLaw(0, 0, 0, 0, 1, "saturates: curves.stable_rank", term="stable"),
    "A": PowerLaw(1 / 2, 0, 1, 0, 0, "r D iid entries of variance v; updates are of order lr"),
    "B_grad": PowerLaw(
        1 / 2, 1, 1, 0, 0, "gamma G A^T: r iid columns, E|.|^2 = gamma^2 v r |G|^2", passes=1
    ),
    "adapter_grad": PowerLaw(
        1 / 2, 1, 1, 0, 0, "B_grad: A_grad is 0, then smaller by a factor lr", passes=1
    ),
}
LINEAR: dict[str, PowerLaw] = {
    **_ANY,
    "B": PowerLaw(1 / 2, 1, 1, 1, 1, "-lr gamma sum_s G_s A^T, linear in B_grad", passes=1),
    "B_update": PowerLaw(1 / 2, 1, 1, 1, 0, "lr B_grad", passes=1),
    "adapter_update": PowerLaw(
        1 / 2, 1, 1, 1, 0, "B_update: A_update is smaller by a factor lr", passes=1
    ),
    "A_grad": PowerLaw(
        1 / 2, 2, 1, 1, 1, "gamma B^T G = -lr gamma^2 A G^T G: r iid rows", passes=2
    ),
    "A_update": PowerLaw(1 / 2, 2, 1, 2, 1, "lr A_grad", passes=2),
    "descent": PowerLaw(
        1, 2, 2, 1, 0, "lr |B_grad|^2, mean lr gamma^2 v r |G|^2: no crossover", passes=1
    ),
    "adapter_out": _product(
        "aligned", 2, "-lr gamma^2 G A^T A x: (lr gamma^2 v |G x|)^2 r (r + 1 + r_align)"
    ),
    "delta_w": _product("weight", 2, "-lr gamma^2 G A^T A: (lr gamma^2 v |G|)^2 r (r + 1 + D)"),
    "adapter_in_grad": _product(
        "crossed", 2, "-lr gamma^2 A^T A G^T g: (lr gamma^2 v |G^T g|)^2 r (r + 1 + D)"
    ),
}
"""Updates proportional to the gradients: SGD, with or without momentum."""

SIGN: dict[str, PowerLaw] = {
    **_ANY,
    "B": PowerLaw(1 / 2, 0, 0, 1, 1, "every entry moves by about lr a step: lr sqrt(r O)"),
    "B_update": PowerLaw(1 / 2, 0, 0, 1, 0, "every entry moves by about lr: lr sqrt(r O)"),
    "adapter_update": PowerLaw(
        1 / 2, 0, 0, 1, 0, "lr sqrt(r O), then lr sqrt(r (O + D)) from step 1"
    ),
    "A_grad": PowerLaw(1 / 2, 1, 0, 1, 1, "gamma B^T G = -lr gamma sign(A G^T) G: r iid rows"),
    "A_update": PowerLaw(
        1 / 2, 0, 0, 2, 1, "about lr per entry once A_grad is not 0: lr sqrt(r D)"
    ),
    "descent": PowerLaw(
        1, 1, 1, 1, 0, "lr |B_grad|_1 = lr gamma sum_k |G a_k|_1: no crossover", passes=1
    ),
    "adapter_out": _product("aligned", 1, "-lr gamma sign(G A^T) A x: r (r - 1 + r_sign)"),
    "delta_w": _product("weight", 1, "-lr gamma sign(G A^T) A: r (r - 1 + pi D/2)"),
    "adapter_in_grad": _product("crossed", 1, "-lr gamma A^T sign(A G^T) g: r (r - 1 + r_back D)"),
}
"""Updates of fixed size: Adam as eps goes to 0, and the other sign-like rules."""

SPECTRAL: dict[str, PowerLaw] = {
    **_ANY,
    "B": PowerLaw(0, 0, 0, 1, 1, "-lr c polar(G A^T): |.|^2 = min(r, m)", "trained"),
    "B_update": PowerLaw(0, 0, 0, 1, 0, "lr c polar(G A^T): |.|^2 = min(r, m)", "trained"),
    "adapter_update": PowerLaw(
        0, 0, 0, 1, 0, "at step 0 B_update: the gradient of A is 0", "trained"
    ),
    "A_grad": PowerLaw(
        0, 1, 0, 1, 1, "gamma B^T G: lr c gamma |G| for r >= m, less below", "reached"
    ),
    "A_update": PowerLaw(0, 0, 0, 2, 1, "lr c polar(B^T G): |.|^2 = min(r, m)", "random"),
    "descent": PowerLaw(1 / 2, 1, 1, 1, 0, "lr c gamma |G A^T|_*, the nuclear norm", "nuclear"),
    "adapter_out": _product(
        "aligned", 1, "lr c gamma polar(G A^T) A x: (1 - s) r + s min(r, m)", 1 / 2
    ),
    "delta_w": _product(
        "weight", 1, "lr c gamma polar(G A^T) A: min(r, m) (D - m + max(r, m))", 1 / 2
    ),
    "adapter_in_grad": _product(
        "crossed", 1, "lr c gamma A^T polar(G A^T)^T g: r + D - m far above m", 1 / 2
    ),
}
"""Updates with equal singular values: Muon. m is the rank of G, and c the factor for the shape of
the matrix. Exponents hold for ranks far above m and D."""

ROWS: Mapping[Family, Mapping[str, PowerLaw]] = {
    "linear": LINEAR,
    "sign": SIGN,
    "spectral": SPECTRAL,
}

DECAYED_A = PowerLaw(1 / 2, 0, 1, 0, 0, "only decay moves it at step 0: lr decay A")
"""The update of the random factor at step 0 under weight decay."""

RANK_SIZED = (
    *("A", "B", "A_grad", "B_grad", "A_update", "B_update"),
    *("adapter_grad", "adapter_update"),
)
"""Sites whose number of entries grows as r. The exponents of their rms, mean_abs and m4 are lower
than that of their norm by 1/2."""

MIRROR = {
    "adapter_out": "adapter_in_grad",
    "adapter_in_grad": "adapter_out",
    "adapter_in": "layer_out_grad",
    **{f"A{part}": f"B{part}" for part in ("", "_grad", "_update")},
    **{f"B{part}": f"A{part}" for part in ("", "_grad", "_update")},
}
"""The site whose Init[A] row describes a site under Init[B]. Other sites keep their own row."""
