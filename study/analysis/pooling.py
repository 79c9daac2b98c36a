"""From layers to the whole model: one number for many layers, with every layer counting the same.

Energies are never added over layers: on SmolLM2 one ``down_proj`` holds 95 % of the energy of
``adapter_out``, so a pooled norm would be that of this layer. Layers are fixed effects. The
*logarithm* of the statistic is pooled over layers, by mean or median, cell by cell. The spread of
the exponents of single layers is reported beside it.

``F`` frames (one cell at one step), ``L`` layers, ``S`` strands (the frames of one seed; see
:mod:`~study.analysis.fits`).
"""

import numpy as np
import numpy.typing as npt

from study.analysis.fits import Floats, Ints, Strands


def pool(y_FL: Floats, strands: Strands) -> tuple[Floats, Floats, Ints]:
    """The mean and the median of a log statistic over layers, and the number of layers, ``[F]``.

    Within a seed the same layers are pooled at every rank. If a layer were missing at high rank
    only (an overflow, a negative ``descent``), the change of layers would look like a slope. So a
    layer counts only if every frame of the seed has it. Frames without any layer (a diverged cell)
    are ignored for this. The mean and median are NaN if no layer is left.
    """
    there_FL = np.isfinite(y_FL)
    empty_F1 = ~there_FL.any(axis=1, keepdims=True)
    shared_SL = np.logical_and.reduceat(there_FL | empty_F1, strands.start_S, axis=0)
    pooled_FL = there_FL & shared_SL[strands.strand_F]
    layers_F = pooled_FL.sum(axis=1)
    with np.errstate(invalid="ignore"):
        mean_F = np.where(pooled_FL, y_FL, 0.0).sum(axis=1) / layers_F
    (median_F,) = quantiles(np.where(pooled_FL, y_FL, np.nan), [0.5])
    return mean_F, median_F, layers_F


def quantiles(values_NL: Floats, q: npt.ArrayLike) -> Floats:
    """Quantiles along the last axis without the NaNs, linear between order statistics.

    ``[len(q), N]``; NaN for a row without values. The same numbers as ``np.nanquantile``, which
    loops over rows in Python if there is a NaN.
    """
    ordered = np.sort(values_NL, axis=1)  # NaNs last
    count = np.isfinite(ordered).sum(axis=1)
    position = np.asarray(q, float)[:, None] * np.maximum(count - 1, 0)
    below = position.astype(np.intp)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    row = np.arange(len(ordered))
    low, high = ordered[row, below], ordered[row, above]
    return np.where(count > 0, low + (high - low) * (position - below), np.nan)
