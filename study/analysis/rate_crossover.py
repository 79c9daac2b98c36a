"""The exponent of the best learning rate as a function of rho, under a sign-like rule.

``rho = |dA x| / |A0 x|`` is the motion of A beside its init, at the end of a run at the best rate.

**One layer, one input x.** B starts at 0, and the gradient dL/dy keeps its signs u. Every entry
moves by ``lr`` per step. After T steps, with ``L = lr T``,

    B    = -L u sign(A0 x)^T
    dA x =  L ||x||_1 sign(A0 x)

because the gradient of A is ``gamma B^T dL/dy x^T``, whose sign is ``-sign(A0 x) sign(x)^T``. So A
moves each component of ``A x`` away from 0, and the adapter output is

    gamma B A x = -gamma L u (||A0 x||_1 + L r ||x||_1)

The r components of ``A0 x`` are Gaussian with standard deviation s. So ``||A0 x||_1`` is
``sqrt(2/pi) s r``, ``|A0 x|`` is ``s sqrt(r)``, and rho is ``L ||x||_1 / s``. The output is

    L M(r) (1 + k rho),    M(r) = sqrt(2/pi) gamma s r,    k = sqrt(pi/2) = 1.25

**The best rate** makes the output the same at every rank. rho is proportional to the rate, by a
factor that does not depend on rank. So ``log L + log M(r) + log(1 + k rho)`` is constant, and the
derivative by ``log r`` is

    d log lr / d log r = -m (1 + k rho) / (1 + 2 k rho),    m = d log M / d log r = 1 - p

**Several inputs.** Their updates of B agree only in part, so M has a bend at low rank
(:mod:`study.analysis.rate_predictions`): m is the slope of that curve over the ranks measured. The
part of the output through dA is proportional to ``M_A(r)``, which has a bend of its own. Its slope
m_A lies between m and 1 - p, since A moves along the directions that the updates of B agree on;
tests/analysis/test_rate_crossover.py measures both. Then

    d log lr / d log r = -(m + m_A k rho) / (1 + 2 k rho)

from ``-m`` at rho far below 1 to ``-m_A / 2`` far above. Several inputs also change k. That shifts
the curve along the axis of rho, and changes neither end.
"""

import math
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Numbers = TypeVar("Numbers", float, npt.NDArray[np.float64])

K = math.sqrt(math.pi / 2)
"""The motion of the output through ``dA``, in units of that through ``A0``, at rho = 1."""


def rate_exponent(slope: float, slope_of_A: float, rho: Numbers) -> Numbers:
    """``d log lr / d log r`` of the best rate at ``rho``.

    ``slope`` is m of the module, ``slope_of_A`` is m_A.

    >>> rate_exponent(0.86, 1.0, 0.0), round(rate_exponent(0.86, 1.0, 1e9), 3)
    (-0.86, -0.5)
    """
    return -(slope + slope_of_A * K * rho) / (1 + 2 * K * rho)
