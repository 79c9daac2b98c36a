"""The ``predicted`` column of an ``exponents`` table: the slope of each row's finite-rank curve over its ranks."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from study.theory.asymptotics import PLAIN, Modifiers, predict
from study.theory.curves import (
    MIDDLE_BACK,
    UNIFORM_KURTOSIS,
    UNKNOWN,
    Layer,
    curve,
    log_bias,
    slope,
)


def predicted_exponent(
    site: str,
    stat: str,
    ranks: Sequence[float],
    *,
    step: int,
    optimizer: str,
    p: float,
    q: float = 0.0,
    init: str = "A",
    layer: Layer = UNKNOWN,
    modifiers: Modifiers = PLAIN,
    log_variance: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> float:
    """The slope that a fit over ``ranks`` should see; NaN where nothing is predicted, where the layer lacks what the
    curve needs, or under two distinct ranks.

    ``log_variance``: the variance of the log statistic over seeds at each rank; given, the slope is that of the mean of
    the log (:func:`~study.theory.log_bias`). ``weights`` as in the fit of the data.
    Raises :class:`StudyError` for an unknown site, stat, optimizer or init.
    """
    prediction = predict(
        site, stat, step=step, optimizer=optimizer, p=p, q=q, init=init, modifiers=modifiers
    )
    if prediction.exponent is None or len(set(ranks)) < 2:
        return math.nan
    values = curve(
        site,
        stat,
        ranks,
        step=step,
        optimizer=optimizer,
        p=p,
        q=q,
        init=init,
        layer=layer,
        modifiers=modifiers,
    )
    bias = 0.0 if log_variance is None else log_bias(site, stat, log_variance)
    return slope(values, ranks, log_bias=bias, weights=weights)


def predicted_exponents(
    site: ArrayLike,
    stat: ArrayLike,
    step: ArrayLike,
    optimizer: ArrayLike,
    p: ArrayLike,
    ranks: Sequence[Any],
    *,
    init: ArrayLike = "A",
    q: ArrayLike = 0.0,
    d_in: ArrayLike = math.nan,
    d_out: ArrayLike = math.nan,
    r_align: ArrayLike = math.nan,
    r_sign: ArrayLike = math.nan,
    r_back: ArrayLike = MIDDLE_BACK,
    kurtosis: ArrayLike = UNIFORM_KURTOSIS,
    decay: ArrayLike = "none",
    clip: ArrayLike = "never",
    eps_ratio: ArrayLike = math.inf,
    lazy: ArrayLike = True,
) -> NDArray[np.float64]:
    """:func:`predicted_exponent` of every row, float64 [rows].

    Every column is a scalar or has one entry per row; ``ranks`` is one sequence of numbers for all rows, or one such
    sequence per row. A quantity with a crossover has a prediction only where its layer's numbers are given: the
    asymptote alone would be off by up to 0.4 at ranks up to 256. NaN in ``eps_ratio`` means that there is no eps. A row
    that pools over unlike layers wants the mean of their rows (the slope of a mean log is the mean of the slopes).
    Rows that repeat are computed once: 300,000 take about a second.

    Raises :class:`StudyError` for an unknown site, stat, optimizer, init or modifier.
    """
    settings = (site, stat, step, optimizer, p, q, init)
    layers = (d_in, d_out, r_align, r_sign, r_back, kurtosis)
    modifiers = (decay, clip, eps_ratio, lazy)
    columns = [
        np.atleast_1d(np.asarray(column, dtype=object))
        for column in (*settings, *layers, *modifiers)
    ]
    rows = list(zip(*np.broadcast_arrays(*columns), strict=True))
    fits: list[tuple[float, ...]] = (
        [tuple(ranks)] * len(rows) if np.ndim(ranks[0]) == 0 else [tuple(r) for r in ranks]
    )

    seen: dict[tuple[Any, ...], float] = {}
    predicted = np.empty(len(rows))
    for i, (fit, row) in enumerate(zip(fits, rows, strict=True)):
        # One NaN object for all: it equals itself as a member of a tuple, so that rows with a NaN repeat too.
        key = (fit, *(math.nan if value != value else value for value in row))
        if key not in seen:
            seen[key] = _of_row(key)
        predicted[i] = seen[key]
    return predicted


def _of_row(row: tuple[Any, ...]) -> float:
    (
        ranks,
        site,
        stat,
        step,
        optimizer,
        p,
        q,
        init,
        *numbers,
        kurtosis,
        decay,
        clip,
        eps_ratio,
        lazy,
    ) = row
    d_in, d_out, r_align, r_sign, r_back = numbers
    layer = Layer(d_in, d_out, r_align, r_sign, r_back, kurtosis=kurtosis)
    modifiers = Modifiers(decay, clip, math.inf if math.isnan(eps_ratio) else eps_ratio, bool(lazy))
    return predicted_exponent(
        site,
        stat,
        ranks,
        step=step,
        optimizer=optimizer,
        p=p,
        q=q,
        init=init,
        layer=layer,
        modifiers=modifiers,
    )
