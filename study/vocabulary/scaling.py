"""The scaling rules: gamma, the multiplier on ``B A``, as a function of the rank.

No other file knows a rule's formula. Every rule is ``alpha * rank ** -p``; its ``p`` is what a study is about:

=========  ==================  =====  ==============================================
rule       gamma               p      source
=========  ==================  =====  ==============================================
``lora``   alpha / r           1      Hu et al. 2021, arXiv 2106.09685, section 4.1
``rslora`` alpha / sqrt(r)     1/2    Kalajdzievski 2023, arXiv 2312.03732, theorem 3.2
``power``  alpha / r**p        any    the family that both belong to
=========  ==================  =====  ==============================================
"""

import math

EXPONENTS: dict[str, float | None] = {"lora": 1.0, "rslora": 0.5, "power": None}
"""The rules by name, with their exponent p; ``None`` where the user gives it (``adapter.exponent``)."""


def exponent(scaling: str, power: float | None = None) -> float:
    """The rule's p in ``gamma = alpha * rank ** -p``.

    Raises ``ValueError`` for an unknown rule, a ``power`` rule without an exponent, or an exponent for another rule.
    """
    if scaling not in EXPONENTS:
        raise ValueError(f"unknown scaling {scaling!r}: choose from {', '.join(EXPONENTS)}")
    fixed = EXPONENTS[scaling]
    if fixed is None:
        if power is None or not math.isfinite(power):
            raise ValueError(
                f"adapter.scaling=power needs a finite adapter.exponent, not {power}: give adapter.exponent=0.75"
            )
        return power
    if power is not None:
        raise ValueError(
            f"adapter.exponent={power} goes with adapter.scaling=power only: scaling {scaling!r} has its own, {fixed:g}"
        )
    return fixed


def gamma(scaling: str, alpha: float, rank: int, power: float | None = None) -> float:
    """The full multiplier on ``B A`` for an adapter of ``rank`` (a positive int).

    >>> gamma("lora", alpha=16, rank=64), gamma("rslora", alpha=16, rank=64)
    (0.25, 2.0)
    """
    return alpha * float(rank) ** -exponent(scaling, power)
