"""The sums that every statistic comes from, and the statistics that come from them.

A tensor is read once on its device and leaves a few numbers: what is kept adds over micro-batches, over A and B, and
over layers; roots and means are taken at the end, on the host. Statistics that are no function of such sums take a
column of their own, written once a step.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from study.sites import ALIGNMENTS

ABS, SQUARE, FOURTH, MAX, DESCENT = range(5)
"""Columns of a row of sums: of |x|, of x^2, of x^4; the largest |x|; minus <gradient, update>."""
AS_WRITTEN = {stat: DESCENT + 1 + i for i, stat in enumerate(("spectral", *ALIGNMENTS, "rho"))}
"""Columns that hold a statistic itself; NaN until it is written."""
SUMS = DESCENT + 1 + len(AS_WRITTEN)


def empty_sums(shape: Sequence[int], device: torch.device) -> Tensor:
    """``[*shape, SUMS]`` with nothing measured yet, float64."""
    sums = torch.zeros(*shape, SUMS, dtype=torch.float64, device=device)
    sums[..., DESCENT + 1 :] = float("nan")
    return sums


def moment_sums(x: Tensor) -> Tensor:
    """``[ABS, SQUARE, FOURTH, MAX]`` of all elements of ``x``, as float64 on its device; nothing synchronises.

    Elements are divided by the largest before they are squared: fourth powers of small gradients would leave float32.
    Sums run in float32 whatever ``x`` is. A few passes over memory, much cheaper than ``pow(4)`` or ``isfinite``: a
    non-finite element shows in the sum of |x|.
    """
    magnitude = x.detach().float().abs().flatten()
    total, largest = magnitude.sum(), magnitude.amax()
    q = magnitude.mul_(1 / largest.clamp_min(torch.finfo(torch.float32).tiny)).square_()
    square, fourth = q.sum(), torch.dot(q, q)
    scale = largest.double().square()
    return torch.stack([total.double(), square * scale, fourth * scale.square(), largest.double()])


def combine(sums: np.ndarray, axis: int) -> np.ndarray:
    """Sums of a union of tensors: they add over ``axis``, maxima max. ``[..., SUMS] -> [..., SUMS]`` less ``axis``."""
    combined = sums.sum(axis)
    combined[..., MAX] = sums[..., MAX].max(axis)
    return combined


def statistics(sums: np.ndarray, count: np.ndarray | float, stats: Sequence[str]) -> dict[str, np.ndarray]:
    """The asked-for ``stats`` of rows of sums ``[..., SUMS]`` over ``count`` elements, float32; NaN where not measured.

    ``mean_abs`` E|x|; ``rms`` sqrt(E x^2); ``m4`` (E x^4)^(1/4); ``max_abs``; ``norm`` Frobenius; ``descent``
    -<gradient, update>, only where an update was measured; ``nonfinite`` 1 where any element is, else 0;
    ``stable_rank`` (norm / spectral)^2; the others as they were written.
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        every = {
            "mean_abs": sums[..., ABS] / count,
            "rms": np.sqrt(sums[..., SQUARE] / count),
            "m4": (sums[..., FOURTH] / count) ** 0.25,
            "max_abs": sums[..., MAX],
            "norm": np.sqrt(sums[..., SQUARE]),
            "descent": sums[..., DESCENT],
            "nonfinite": np.where(np.isfinite(sums[..., ABS]), 0.0, 1.0),
            "stable_rank": sums[..., SQUARE] / sums[..., AS_WRITTEN["spectral"]] ** 2,
            **{stat: sums[..., column] for stat, column in AS_WRITTEN.items()},
        }
        return {stat: every[stat].astype(np.float32) for stat in stats}
