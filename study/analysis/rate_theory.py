"""What theory predicts for the exponent of the best learning rate with rank.

The best rate is the one that moves the adapter output by the same amount at every rank. Near the
init a step of size ``lr`` moves it by ``lr M(r)``, and ``M`` is the finite-rank curve of
``adapter_out`` (:mod:`study.theory.curves`):

    M(r) = gamma r sqrt(1 + (r_sign - 1)/r)          sign-like rules
    M(r) = gamma^2 r sqrt(1 + (1 + r_align)/r)       linear rules, roughly

So the best rate falls as ``1/M``. Under a sign-like rule the motion of A may dominate instead (rho
= |dA x| / |A0 x| >> 1, at the end of a run at the best rate). The output then moves by about
``lr^2 M(r)``, and the best rate falls as ``M^-1/2`` (muA, arXiv 2602.06204, Corollary 4.4). The
prediction is the interval between the two; rho says where in it. Below the crossover it is far from
the asymptotes, -(1 - p) and -(1 - p)/2: at p = 1/2, ranks 4 to 256 and r_sign = 9 it is -0.37 to
-0.19, not -0.5 to -0.25.

**One layer, one input x.** B starts at 0, and the gradient dL/dy keeps its signs u. Every entry
moves by ``lr`` per step. After T steps, with ``L = lr T``,

    B = -L u sign(A0 x)^T          dA x = L ||x||_1 sign(A0 x)

because the gradient of A is ``gamma B^T dL/dy x^T``, whose sign is ``-sign(A0 x) sign(x)^T``. So A
moves each component of ``A x`` away from 0, and the output is ``-gamma L u (||A0 x||_1 + L r
||x||_1)``. The r components of ``A0 x`` are Gaussian with standard deviation s, so ``||A0 x||_1``
is ``sqrt(2/pi) s r``, ``|A0 x|`` is ``s sqrt(r)``, and rho is ``L ||x||_1 / s``. The output is

    L M(r) (1 + k rho),    M(r) = sqrt(2/pi) gamma s r,    k = sqrt(pi/2) = 1.25

**The best rate** makes the output the same at every rank. rho is proportional to the rate, by a
factor that does not depend on rank. So ``log L + log M(r) + log(1 + k rho)`` is constant, and the
derivative by ``log r`` is

    d log lr / d log r = -m (1 + k rho) / (1 + 2 k rho),    m = d log M / d log r = 1 - p

**Several inputs.** Their updates of B agree only in part, so M has a bend at low rank: m is the
slope of that curve over the ranks measured. The part of the output through dA is proportional to
``M_A(r)``, which has a bend of its own. Its slope m_A lies between m and 1 - p, since A moves along
the directions that the updates of B agree on; tests/analysis/test_rate_crossover.py measures both.
Then

    d log lr / d log r = -(m + m_A k rho) / (1 + 2 k rho)

from ``-m`` at rho far below 1 to ``-m_A / 2`` far above. Several inputs also change k. That shifts
the curve along the axis of rho, and changes neither end.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from study.theory import Layer, curve, family, slope
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.quantities import FORWARD_OUT
from study.vocabulary.thresholds import LAST_PREDICTED_STEP

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


MOVES = ("log_move_aligned", "log_move_unaligned")
"""The columns of ``rates`` with log M, up to a constant. They are equal if the alignments were
recorded."""
LARGE = 1e9
"""Stands for an unknown number of features, D, as an upper bound."""


def log_moves(runs: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """log M at each rank of the runs of one rule: the columns :data:`MOVES`, indexed by rank.

    It is the mean over layers. If the probes recorded the alignments of the layers, both columns
    use them. Otherwise the first has the least alignment number that is possible (r_align = 1: all
    inputs along the direction that the gradient reads), and the second the largest plausible one
    (r_align = D: inputs unrelated to the gradient). NaN for an init or optimizer without theory.
    """
    ranks = np.unique(runs["rank"].to_numpy(float))
    first = runs.iloc[0]
    optimizer, init = str(first["optimizer"]), INITS.get(str(first["init"]))
    columns = {name: np.full(len(ranks), math.nan) for name in MOVES}
    # The law holds if A is drawn, with a variance independent of rank.
    if init is not None and init.drawn == "A" and init.q == 0 and optimizer in OPTIMIZERS:
        law: dict[str, Any] = {"step": 1, "optimizer": optimizer, "p": float(first["exponent_p"])}
        for name, layers in zip(MOVES, layer_bounds(runs, probes, optimizer), strict=True):
            logs = [np.log(curve(FORWARD_OUT.site, "rms", ranks, **law, layer=x)) for x in layers]
            columns[name] = np.mean(logs, axis=0)
    return pd.DataFrame(columns, index=ranks)


def predicted_interval(moves: pd.DataFrame, optimizer: str) -> tuple[float, float]:
    """The interval predicted for the exponent of the best rate over the ranks of ``moves``.

    ``moves`` is a part of :func:`log_moves`. NaN without a prediction, or with fewer than two
    ranks.
    """
    if len(moves) < 2 or moves.isna().any(axis=None) or optimizer not in OPTIMIZERS:
        return math.nan, math.nan
    falls = [-m for m in move_slopes(moves)]
    if family(optimizer) == "sign":
        falls += [fall / 2 for fall in falls]
    return min(falls), max(falls)


def move_slopes(moves: pd.DataFrame) -> list[float]:
    """d log M / d log r over the ranks of ``moves``, a part of :func:`log_moves`, of each column.

    There must be two ranks at least.
    """
    # log M is known up to a constant; centred, its exponential is near 1.
    return [
        float(slope(np.exp(column - column.mean()), moves.index.to_numpy(float)))
        for column in moves.to_numpy(float).T
    ]


def layer_bounds(
    runs: pd.DataFrame, probes: pd.DataFrame, optimizer: str
) -> tuple[Sequence[Layer], Sequence[Layer]]:
    """The layers for the two columns of :data:`MOVES`.

    Recorded alignments are geometric means over the runs at the first step that has them: they do
    not depend on rank or rate there.
    """
    kurtosis = INITS[str(runs["init"].iloc[0])].kurtosis
    name = "r_sign" if family(optimizer) == "sign" else "r_align"
    mine = probes[probes["cell_id"].astype(str).isin(set(runs["cell_id"].astype(str)))]
    fans = mine["d_in"].dropna() if "d_in" in mine else pd.Series(dtype=float)
    if name in mine:
        there = (mine["site"] == FORWARD_OUT.site) & (mine[name] > 0)
        there &= mine["step"].between(1, LAST_PREDICTED_STEP)
        rows = mine[there & np.isfinite(mine[name])]
        rows = rows[rows["step"] == rows["step"].min()]
        if len(rows):
            by = rows.assign(log=np.log(rows[name])).groupby(rows["layer"].astype(str))
            d_in = by["d_in"].first() if "d_in" in rows else by["log"].first() * math.nan
            recorded = [
                Layer(d_in=fan if fan > 0 else LARGE, kurtosis=kurtosis, **{name: math.exp(log)})
                for fan, log in zip(d_in, by["log"].mean(), strict=True)
            ]
            return recorded, recorded
    D = float(fans.max()) if len(fans) and fans.max() > 0 else LARGE
    scale = math.pi / 2 if name == "r_sign" else 1.0
    ends = [Layer(d_in=D, kurtosis=kurtosis, **{name: scale * end}) for end in (1.0, D)]
    return ends[:1], ends[1:]
