"""The inits: which factor is drawn, and how the variance of its entries depends on fan and rank.

``scaled`` is our reading of rsLoRA's appendix B.3. The variance of ``orthogonal`` has a kink at D.
Hayou et al. 2024 (arXiv 2406.08447) compare Init[A] with Init[B]. PEFT's own ``gaussian`` has a
standard deviation of 1/r. It would confound every rank sweep, so it is not offered.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Init:
    """- ``drawn``: the factor that is random, ``A`` or ``B``. The other is 0;
    - ``q``: the variance of its entries is proportional to ``r ** -q``; None if it is not a power;
    - ``kurtosis``: the excess kurtosis of its entries, which finite-rank curves need;
    - ``numerator``: of the variance, over the fan (D for A, O for B).
    """

    drawn: str
    q: float | None
    kurtosis: float
    numerator: float = 1.0


UNIFORM, NORMAL = -1.2, 0.0
"""Excess kurtosis of a uniform and of a normal distribution."""

INITS = {
    "kaiming": Init("A", q=0.0, kurtosis=UNIFORM, numerator=1 / 3),
    "gaussian": Init("A", q=0.0, kurtosis=NORMAL),
    "orthogonal": Init("A", q=None, kurtosis=NORMAL),
    "scaled": Init("A", q=1.0, kurtosis=UNIFORM, numerator=1 / 3),
    "init_b": Init("B", q=0.0, kurtosis=UNIFORM, numerator=1 / 3),
}
IMPORTED = "imported"
"""The init that tables show for an adapter that was already trained. It has no predictions."""
