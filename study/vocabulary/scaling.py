"""The scaling rules: gamma, the multiplier on ``B A``, as a function of the rank.

Every rule is ``alpha * rank ** -p``. No other file knows the ``p`` of a rule.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """``p``: the rule's exponent; None if the user gives it as ``adapter.exponent``.

    ``label``: the name that figures and reports print. ``source``: the paper that defines it.
    """

    label: str
    p: float | None
    source: str = ""


RULES: dict[str, Rule] = {
    "lora": Rule("LoRA", 1.0, "Hu et al. 2021, arXiv 2106.09685, section 4.1"),
    "rslora": Rule("rsLoRA", 0.5, "Kalajdzievski 2023, arXiv 2312.03732, theorem 3.2"),
    "power": Rule("power", None, "the family that the other rules belong to"),
}

POWER = "power"
"""The rule whose exponent the user gives."""

FRACTIONS = {0.25: "1/4", 1 / 3: "1/3", 0.5: "1/2", 2 / 3: "2/3", 0.75: "3/4"}
"""Exponents that are written as a fraction."""


def named_rule(scaling: str, power: float | None = None) -> tuple[str, float | None]:
    """``adapter.scaling`` and ``adapter.exponent`` as a rule of :data:`RULES` and its exponent.

    A number as the scaling is the p of the power rule, so that one axis of a sweep holds all rules.
    Raises ``ValueError`` if ``power`` is given with such a number.

    >>> named_rule("0.75"), named_rule("lora")
    (('power', 0.75), ('lora', None))
    """
    try:
        p = float(scaling)
    except ValueError:
        return scaling, power
    if power is not None:
        raise ValueError(
            f"adapter.scaling={scaling} is an exponent, and adapter.exponent={power:g} is another: "
            "give one of them"
        )
    return POWER, p


def exponent(scaling: str, power: float | None = None) -> float:
    """The rule's p in ``gamma = alpha * rank ** -p``.

    Raises ``ValueError`` for an unknown rule, for a rule without a fixed exponent if ``power`` is
    None, and for any other rule if it is not.
    """
    if scaling not in RULES:
        raise ValueError(f"unknown scaling {scaling!r}: choose from {', '.join(RULES)}")
    fixed = RULES[scaling].p
    if fixed is None:
        if power is None or not math.isfinite(power):
            raise ValueError(
                f"adapter.scaling={scaling} needs a finite adapter.exponent, not {power}: "
                "give adapter.scaling=0.75, for example"
            )
        return power
    if power is not None:
        raise ValueError(
            f"adapter.exponent={power} needs adapter.scaling=power: scaling {scaling!r} has the "
            f"exponent {fixed:g}. Several rules in one sweep: adapter.scaling={scaling},{power}"
        )
    return fixed


def gamma(scaling: str, alpha: float, rank: float, power: float | None = None) -> float:
    """The full multiplier on ``B A`` for an adapter of ``rank``; 0 at infinite rank.

    >>> gamma("lora", alpha=16, rank=64), gamma("rslora", alpha=16, rank=64)
    (0.25, 2.0)
    """
    return alpha * float(rank) ** -exponent(scaling, power)


def rule_label(scaling: str, p: float | None = None) -> str:
    """``LoRA``, ``rsLoRA``, or ``power p = 0.75`` for a rule whose exponent the user gives."""
    rule = RULES[scaling]
    return rule.label if rule.p is not None or p is None else f"{rule.label} p = {p:g}"


def rule_words(scaling: str, power: float | None = None) -> str:
    """A rule in the words of the configuration: ``rslora``, or ``power p=0.75``."""
    return scaling if power is None else f"{scaling} p={power:g}"


def formula(p: float) -> str:
    """Gamma in words: ``γ = α``, ``γ = α/r``, ``γ = α/√r``, ``γ = α/r^3/4``."""
    known = {0.0: "γ = α", 1.0: "γ = α/r", 0.5: "γ = α/√r"}
    return known.get(p, f"γ = α/r^{FRACTIONS.get(p, f'{p:g}')}")
