"""The inits: which factor is drawn, and how the variance of its entries goes with fan and rank.

==============  =====  ============================================  ========================  ======================
init            drawn  entries                                       variance                  source
==============  =====  ============================================  ========================  ======================
``kaiming``     A      uniform (a = sqrt 5)                          1/(3 D)                   PEFT's default
``gaussian``    A      normal                                        1/D                       Hayou et al. 2024
``orthogonal``  A      orthonormal rows (r <= D) or columns (r > D)  1/max(r, D): kink at D
``scaled``      A      ``kaiming`` over sqrt(r)                      1/(3 D r)                 rsLoRA, B.3, as read
``init_b``      B      uniform, ``kaiming``'s mirror; A = 0          1/(3 O)                   Hayou et al. 2024
==============  =====  ============================================  ========================  ======================

Hayou et al. 2024 (arXiv 2406.08447) compare Init[A] with Init[B]. PEFT's own ``gaussian`` has standard deviation 1/r,
which would confound every rank sweep; it is not offered.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Init:
    """``drawn``: the factor that is random, the other being 0. ``q``: its variance goes as ``r ** -q``; None where that
    is no power. ``kurtosis``: the excess kurtosis of its entries, which finite-rank curves need. ``numerator``: of the
    variance, over the fan (D for A, O for B)."""

    drawn: str
    q: float | None
    kurtosis: float
    numerator: float = 1.0

    def variance(self, fan: int, rank: float = 1) -> float:
        """Of the drawn factor's entries. Raises ``ValueError`` where it is no power of the rank."""
        if self.q is None:
            raise ValueError("this init's variance is no power of the rank")
        return self.numerator / fan * float(rank) ** -self.q


UNIFORM, NORMAL = -1.2, 0.0
INITS = {
    "kaiming": Init("A", q=0.0, kurtosis=UNIFORM, numerator=1 / 3),
    "gaussian": Init("A", q=0.0, kurtosis=NORMAL),
    "orthogonal": Init("A", q=None, kurtosis=NORMAL),
    "scaled": Init("A", q=1.0, kurtosis=UNIFORM, numerator=1 / 3),
    "init_b": Init("B", q=0.0, kurtosis=UNIFORM, numerator=1 / 3),
}
IMPORTED = "imported"
"""What tables call the init of an adapter that was trained before: nothing is predicted of it."""
