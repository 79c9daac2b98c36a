"""Local slopes: scaling exponents between neighbouring ranks, against rank / crossover.

A quantity with a crossover rho grows as ``sqrt(r (r + rho - 1))`` times a power of r
(:mod:`study.theory.curves`). Its slope at rank r is ``limit - 1 / (2 + 2 u)`` with
``u = r / (rho - 1)`` and ``limit`` the slope at large rank. So the slopes of all layers and models
lie on one curve of u.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from study.analysis.exponents import fit_exponents
from study.analysis.fits import Floats
from study.analysis.grouping import numbered
from study.analysis.layer_numbers import layer_numbers
from study.analysis.predictions import RowCurves, with_predictions
from study.theory import Layer, crossover, predict
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.quantities import ALL_KINDS, MEAN_LOG, POOLINGS, TRAIN, Quantity


def local_slopes(
    cells: pd.DataFrame,
    metrics: pd.DataFrame,
    probes: pd.DataFrame,
    quantities: Sequence[Quantity],
    step: int,
) -> pd.DataFrame:
    """A row per curve, quantity and pair of neighbouring ranks: the mean over layers of the log.

    ``quantities`` have a crossover at ``step``. The columns are those of
    :func:`~study.analysis.predictions.with_predictions` and

    - ``position``: u at the geometric mean of the two ranks, the geometric mean over layers;
    - ``limit``: the slope at large rank.

    Rows without a prediction are left out. Raises :class:`StudyError` if no curve has two ranks.
    """
    finite = cells[np.isfinite(cells["rank"])]
    here = probes["step"].eq(step) & probes["batch"].eq(TRAIN)
    measured = probes[here & probes["site"].isin([one.site for one in quantities])]
    stats = [*dict.fromkeys(one.stat for one in quantities)]
    found = []
    for low, high in pairwise(sorted(set(finite["rank"]))):
        part = finite[finite["rank"].isin([low, high])]
        fits = with_predictions(fit_exponents(part, measured, stats=stats), part, metrics, probes)
        wanted = [(one.site, one.stat) for one in quantities]
        asked = [pair in wanted for pair in zip(fits["site"], fits["stat"], strict=True)]
        found.append(_placed(fits[asked], part, probes, math.sqrt(low * high)))
    return pd.concat(found, ignore_index=True)


def one_curve(limit: float, position: npt.ArrayLike) -> Floats:
    """The local slope at each ``position`` u: ``limit - 1 / (2 + 2 u)``."""
    return limit - 0.5 / (1 + np.asarray(position, float))


def _placed(
    fits: pd.DataFrame, cells: pd.DataFrame, probes: pd.DataFrame, rank: float
) -> pd.DataFrame:
    """The pooled rows of ``fits``, each with the position and the limit of its layers."""
    predicted = fits["predicted"].notna()
    single = np.flatnonzero(~fits["layer"].isin(POOLINGS) & predicted)
    pooled = np.flatnonzero((fits["layer"] == MEAN_LOG) & (fits["kind"] == ALL_KINDS) & predicted)
    curves = RowCurves.of(fits, cells)
    curve = numbered(fits, ["site", "stat"], curves.curve_R)
    rows = fits.take(single)
    numbers = layer_numbers(rows, curves.curve_R[single], curves.of_cell, probes)
    each = zip(rows.to_dict("records"), numbers.to_dict("records"), strict=True)
    places = pd.DataFrame(
        [_place(row, known, rank) for row, known in each], columns=["position", "limit"]
    )
    mean = places.groupby(curve[single]).mean().reindex(curve[pooled])
    return fits.take(pooled).assign(
        position=np.exp(mean["position"].to_numpy()), limit=mean["limit"].to_numpy()
    )


def _place(row: Mapping[Any, Any], known: Mapping[Any, float], rank: float) -> tuple[float, float]:
    """The logarithm of u at ``rank``, and the slope at large rank, of one layer."""
    init, optimizer = INITS[row["init"]], row["optimizer"]
    setting = {"step": int(row["step"]), "optimizer": optimizer, "p": float(row["exponent_p"])}
    told = predict(row["site"], row["stat"], **setting, q=float(init.q or 0), init=init.drawn)
    assert told.row is not None
    assert told.exponent is not None
    recorded = {str(name): value for name, value in known.items() if not math.isnan(value)}
    layer = Layer(**recorded, kurtosis=init.kurtosis)
    rho = crossover(told.row.term, OPTIMIZERS[optimizer].family, layer, init.drawn)
    return math.log(rank / (rho - 1)), told.exponent
