"""The scaling rules: gamma, the multiplier on ``B A``, as a function of the rank.

Most rules are powers, ``alpha * rank ** -p``. No other file knows the form of a rule.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """``p``: the exponent of a power; None if the user gives it, and if the rule is no power.

    ``label``: the name that figures and reports print. ``source``: the paper that defines it.
    ``over_alpha``, ``formula``: gamma over alpha by rank and crossover, and gamma in words, if it
    is no power.
    """

    label: str
    p: float | None = None
    source: str = ""
    over_alpha: Callable[[float, float], float] | None = None
    formula: str = ""


RULES: dict[str, Rule] = {
    "lora": Rule("LoRA", 1.0, "Hu et al. 2021, arXiv 2106.09685, section 4.1"),
    "rslora": Rule("rsLoRA", 0.5, "Kalajdzievski 2023, arXiv 2312.03732, theorem 3.2"),
    "power": Rule("power", None, "the family that the rules before it belong to"),
    "crossover": Rule(
        "crossover",
        source="derived here, from the size of a step: M = γ√(r(r + c))",
        over_alpha=lambda rank, c: (rank * (rank + c)) ** -0.5,
        formula="γ = α/√(r(r + {:g}))",
    ),
    "full": Rule("full fine-tuning", over_alpha=lambda rank, c: 1.0),
}
"""Every rule by the value of ``adapter.scaling``."""

POWER = "power"
"""The rule whose exponent the user gives."""
FULL = "full"
"""No adapter: ``adapter.rank=full`` trains the adapted weights themselves."""

FRACTIONS = {0.25: "1/4", 1 / 3: "1/3", 0.5: "1/2", 2 / 3: "2/3", 0.75: "3/4"}
"""Exponents that are written as a fraction."""


def named_rule(scaling: str, power: float | None = None) -> tuple[str, float | None]:
    """``adapter.scaling`` and ``adapter.exponent`` as a rule of :data:`RULES` and its exponent.

    A number as the scaling is the p of the power rule, so that one axis of a sweep holds all rules.

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


def uses_crossover(scaling: str) -> bool:
    """Whether the rule has the number ``adapter.crossover``."""
    return scaling in RULES and scaling != FULL and RULES[scaling].over_alpha is not None


def letter(scaling: str) -> str:
    """The letter of the number that the user gives with a rule: ``p``, ``c``, or none."""
    if uses_crossover(scaling):
        return "c"
    return "p" if scaling in RULES and scaling != FULL and RULES[scaling].p is None else ""


def exponent(scaling: str, power: float | None = None) -> float | None:
    """The rule's p in ``gamma = alpha * rank ** -p``; None if it is no power. ``ValueError`` for an
    unknown rule, or a power that does not fit it."""
    if scaling not in RULES:
        raise ValueError(f"unknown scaling {scaling!r}: choose from {', '.join(RULES)}")
    if scaling == POWER:
        if power is None or not math.isfinite(power):
            raise ValueError(
                f"adapter.scaling={scaling} needs a finite adapter.exponent, not {power}: "
                "give adapter.scaling=0.75, for example"
            )
        return power
    if power is not None:
        raise ValueError(
            f"adapter.exponent={power} needs adapter.scaling=power, not {scaling}. Several rules "
            f"in one sweep: adapter.scaling={scaling},{power}"
        )
    return RULES[scaling].p


def gamma(
    scaling: str, alpha: float, rank: float, power: float | None = None, crossover: float = math.nan
) -> float:
    """The full multiplier on ``B A`` for an adapter of ``rank``; 0 at infinite rank.

    >>> gamma("lora", alpha=16, rank=64), gamma("rslora", alpha=16, rank=64)
    (0.25, 2.0)
    """
    p, over_alpha = exponent(scaling, power), RULES[scaling].over_alpha
    if over_alpha is not None:
        return alpha * over_alpha(float(rank), crossover)
    assert p is not None
    return alpha * float(rank) ** -p


def rule_label(scaling: str, p: float | None = None, crossover: float | None = None) -> str:
    """``LoRA``, ``rsLoRA``, or with the user's number ``power p = 0.75``, ``crossover c = 40``."""
    return RULES[scaling].label + _number(scaling, p, crossover, " = ")


def rule_words(scaling: str, p: float | None = None, crossover: float | None = None) -> str:
    """A rule in the words of the configuration: ``rslora``, or ``power p=0.75``."""
    return scaling + _number(scaling, p, crossover, "=")


def _number(scaling: str, p: float | None, crossover: float | None, equals: str) -> str:
    number = {"p": p, "c": crossover}.get(letter(scaling))
    return "" if number is None else f" {letter(scaling)}{equals}{number:g}"


def rule_formula(scaling: str, p: float, crossover: float) -> str:
    """``γ = α``, ``γ = α/r``, ``γ = α/√r``, ``γ = α/r^3/4``, ``γ = α/√(r(r + 40))``; empty for full
    fine-tuning, which has no gamma."""
    if RULES[scaling].over_alpha is not None:
        return RULES[scaling].formula.format(crossover)
    known = {0.0: "γ = α", 1.0: "γ = α/r", 0.5: "γ = α/√r"}
    return known.get(p, f"γ = α/r^{FRACTIONS.get(p, f'{p:g}')}")
