"""The ``predicted`` column of an ``exponents`` table: the slope of each row's finite-rank curve."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from study.theory.asymptotics import PLAIN, Modifiers, predict
from study.theory.curves import MIDDLE_BACK, UNKNOWN, Layer, mean_log_curve, slope
from study.vocabulary.inits import UNIFORM
from study.vocabulary.optimizers import ADJUSTMENTS


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
    weights: ArrayLike | None = None,
) -> float:
    """The slope that a fit over ``ranks`` should find: that of the mean of the log over draws.

    NaN without a prediction, if the curve depends on an unknown property of the layer, or for fewer
    than two distinct ranks.

    ``weights``: those of the fit of the data.

    Raises :class:`StudyError` for an unknown site, stat, optimizer or init.
    """
    setting: dict[str, Any] = {"step": step, "optimizer": optimizer, "p": p, "q": q, "init": init}
    setting["modifiers"] = modifiers
    if predict(site, stat, **setting).exponent is None or len(set(ranks)) < 2:
        return math.nan
    values = mean_log_curve(site, stat, ranks, layer=layer, **setting)
    return slope(values, ranks, weights=weights)


class Question(NamedTuple):
    """All that the prediction for one row of a table depends on, beside its ranks.

    NaN in ``eps_ratio`` means that the optimizer has no eps.
    """

    site: str
    stat: str
    step: int
    optimizer: str
    p: float
    q: float = 0.0
    init: str = "A"
    d_in: float = math.nan
    d_out: float = math.nan
    r_align: float = math.nan
    r_sign: float = math.nan
    r_back: float = MIDDLE_BACK
    r_diag: float = math.nan
    kurtosis: float = UNIFORM
    r_eff: float = math.nan
    r_joint: float = math.nan
    g_rank: float = math.nan
    r_nuc: float = math.nan
    r_rows: float = math.nan
    decay: str = "none"
    clip: str = "never"
    eps_ratio: float = math.inf
    adjust: str = ADJUSTMENTS[0]
    lazy: bool = True

    @property
    def setting(self) -> dict[str, Any]:
        """The keyword arguments of :func:`predicted_exponent` and of the curves."""
        return {
            **{name: getattr(self, name) for name in ("step", "optimizer", "p", "q", "init")},
            "layer": Layer(
                d_in=self.d_in,
                d_out=self.d_out,
                r_align=self.r_align,
                r_sign=self.r_sign,
                r_back=self.r_back,
                r_diag=None if math.isnan(self.r_diag) else self.r_diag,
                kurtosis=self.kurtosis,
                r_eff=self.r_eff,
                r_joint=self.r_joint,
                g_rank=self.g_rank,
                r_nuc=self.r_nuc,
                r_rows=self.r_rows,
            ),
            "modifiers": Modifiers(
                decay=self.decay,
                clip=self.clip,
                eps_ratio=math.inf if math.isnan(self.eps_ratio) else self.eps_ratio,
                adjust=self.adjust,
                lazy=bool(self.lazy),
            ),
        }


def questions(
    site: ArrayLike,
    stat: ArrayLike,
    step: ArrayLike,
    optimizer: ArrayLike,
    p: ArrayLike,
    **others: ArrayLike,
) -> list[Question]:
    """A question per row. Every column is a scalar or has one entry per row."""
    columns = Question(site, stat, step, optimizer, p, **others)  # type: ignore[arg-type]
    arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(c, object)) for c in columns))
    # One NaN object for all: tuples that hold the same object are equal, so rows with a NaN repeat
    # too.
    return [
        Question._make(math.nan if value != value else value for value in row)
        for row in zip(*arrays, strict=True)
    ]


def predicted_exponents(
    site: ArrayLike,
    stat: ArrayLike,
    step: ArrayLike,
    optimizer: ArrayLike,
    p: ArrayLike,
    ranks: Sequence[Any],
    **others: ArrayLike,
) -> NDArray[np.float64]:
    """:func:`predicted_exponent` of every row, float64 [rows].

    Every column is a scalar or has one entry per row; ``others`` are further fields of
    :class:`Question`. ``ranks`` is one sequence of numbers for all rows, or one such sequence per
    row.

    A quantity with a crossover has a prediction only if the properties of its layer are given: the
    asymptote alone would be off by up to 0.4 at ranks up to 256. For a row that pools different
    layers, take the mean of the predictions of these layers (the slope of a mean log is the mean of
    the slopes). Repeated rows are computed once: 300,000 take about a second.

    Raises :class:`StudyError` for an unknown site, stat, optimizer, init or modifier.
    """
    rows = questions(site, stat, step, optimizer, p, **others)
    shared = np.ndim(ranks[0]) == 0
    fits = [tuple(ranks)] * len(rows) if shared else [tuple(of_row) for of_row in ranks]

    answers: dict[tuple[tuple[float, ...], Question], float] = {}
    predicted = np.empty(len(rows))
    for i, (fit, question) in enumerate(zip(fits, rows, strict=True)):
        if (fit, question) not in answers:
            answers[fit, question] = predicted_exponent(
                question.site, question.stat, fit, **question.setting
            )
        predicted[i] = answers[fit, question]
    return predicted
