"""The first update at another rank. To leading order in the learning rate, it lowers the loss by lr
times :func:`descent`, and moves the adapter's output by lr times :func:`move`.

At one rank, two rules with the same gamma give the same run. No setting gives the same run at
another rank, because A has another number of random rows.
"""

from typing import Any

from study.theory.asymptotics import family
from study.theory.curves import curve
from study.theory.layers import Layer

USUAL = Layer(1000, 1000, r_align=5, r_sign=10, r_back=1, r_diag=0, kurtosis=0)
"""The layer if it is unknown. Geometric means over the measured layers are: r_sign 12 and r_align 6
on SmolLM2, r_sign 10 and r_align 5 on the tiny model."""


def descent(rank: float, gamma: float, optimizer: str) -> float:
    """The decrease of the loss by a first update at rate 1, up to a constant; Muon's for the factor
    ``sqrt(O / r)``."""
    kind = family(optimizer)
    if kind == "spectral":
        return gamma
    return float(rank) * gamma ** (2 if kind == "linear" else 1)


def move(rank: float, gamma: float, optimizer: str, layer: Layer = USUAL) -> float:
    """The rms change of the adapter's output by an update at rate 1, up to a constant; NaN if
    unknown."""
    law: dict[str, Any] = {"step": 1, "optimizer": optimizer, "p": 0.0, "layer": layer}
    [size] = curve("adapter_out", "rms", [rank], **law)
    return float(size) * gamma ** (2 if family(optimizer) == "linear" else 1)
