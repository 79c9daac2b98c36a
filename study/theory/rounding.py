"""The share of an adapter's output that rounding loses, if it is added to a rounded output.

docs/derivations.md derives it; ``tests/theory/test_theory_rounding.py`` simulates it.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from study.theory.log_gaps import Floats

BF16_REMEDY = "model = study.integrations.peft.round_once(model)"
"""What keeps the adapter's output in bf16, in PEFT."""
MANTISSA = 7
"""Bits of bf16 after the leading one."""
_erf = np.vectorize(math.erf, otypes=[float])
EDGES = np.arange(-27.0, 5.0)
"""Powers of two, relative to the rms of y. Outside of them lies 1e-8 of the probability."""


def kept(spacing: ArrayLike) -> Floats:
    """``E d D / E d^2`` for a Gaussian d of rms 1 that is rounded to multiples of ``spacing``."""
    t = np.asarray(spacing, float)[..., None]
    halves = np.arange(10) + 0.5
    both_sides = 2 / math.sqrt(2 * math.pi) * t * np.exp(-((halves * t) ** 2) / 2)
    return np.where(t[..., 0] < 1, 1.0, both_sides.sum(-1))  # 1 - 5e-9 at t = 1


def swallowed(out_rms: ArrayLike, adapter_rms: ArrayLike) -> Floats:
    """The expected share of an adapter's output that is lost in bf16; from the rms of the layer's
    output and of the adapter's."""
    out, s = np.broadcast_arrays(np.asarray(out_rms, float), np.asarray(adapter_rms, float))
    with np.errstate(divide="ignore", invalid="ignore"):
        edges = 2.0 ** (np.floor(np.log2(out))[..., None] + EDGES)
        share = np.diff(_erf(edges / out[..., None] / math.sqrt(2)))
        spacing = 2.0**-MANTISSA * edges[..., :-1]
        lost = 1 - np.sum(share * kept(spacing / s[..., None]), axis=-1)
    return np.where(s > 0, lost, math.nan)
