"""The column ``predicted`` of ``exponents``: the slope that theory predicts for the same ranks.

A prediction depends on what the tables hold of a curve: its rule and init, the alignments that its
probes recorded, whether gradients were clipped or small beside eps, and whether its steps were lazy
(the loss changed as its linearisation predicts). If one of these is missing, the quantities that
depend on it have no prediction.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from study.analysis.fits import Floats, Ints, Mask
from study.analysis.grouping import curve_columns, firsts, numbered
from study.analysis.layer_numbers import LAYER_NUMBERS, layer_numbers
from study.analysis.row_conditions import RowCurves, clipping, eps_ratios, laziness
from study.theory import mean_log_curve, predicted_exponents, questions
from study.theory.asymptotics import CLIPS
from study.theory.spectral import ORTHOGONAL_FROM
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import ADJUSTMENTS, OPTIMIZERS, decay_of, of_family
from study.vocabulary.quantities import ALL_KINDS, DESCENT, MEAN_LOG, MODEL_WIDE, POOLINGS

LAYERS_AGREE = 0.02
"""The median over layers has a prediction if those of its layers span less than this."""


def with_predictions(
    exponents: pd.DataFrame, cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame
) -> pd.DataFrame:
    """``exponents`` with ``predicted``, the slope of each row's finite-rank curve over its ranks.

    NaN stands for no prediction. Three columns say what the prediction depends on, over all cells
    of the curve and all steps up to the row's:

    - ``lazy``: 1 if every probed step was lazy, 0 if one was not, NaN if that was not recorded;
    - ``clipped``: whether gradients were clipped ``never``, ``always`` or at ``some`` steps;
    - ``eps_ratio``: the smallest rms(gradient) / eps, median over layers, of the factor that the
      row is about; infinite if the optimizer has no eps or the gradient was not measured.

    Every prediction is the slope of the mean of the log over draws of the init, so it does not
    depend on the number of seeds (:mod:`study.theory.log_gaps`). A ``mean_log`` row is predicted by
    the mean of the predictions for its layers (the slope of a mean is the mean of the slopes). A
    ``median`` row is predicted only if the predictions for its layers agree within
    :data:`LAYERS_AGREE`. The descent of the whole model is the sum of those of its layers; where
    their slopes differ, as under Muon, it is predicted by their mean, weighted by descent. There is
    no prediction for an init whose variance is not a power of the rank, nor for an optimizer that
    is not in the vocabulary.
    """
    cells = cells[np.isfinite(cells["rank"])]
    curves = RowCurves.of(exponents, cells)
    conditions = pd.DataFrame(
        {
            "lazy": laziness(curves, metrics, probes),
            "clipped": clipping(curves, metrics),
            "eps_ratio": eps_ratios(curves, exponents, cells, probes),
        }
    )
    unpooled = ~exponents["layer"].isin(POOLINGS).to_numpy()
    single = np.flatnonzero(_has_theory(exponents) & unpooled)
    predicted = np.full(len(exponents), np.nan)
    if len(single):
        predicted[single] = _of_single_layers(
            exponents.take(single), curves, single, conditions.take(single), cells, probes
        )
    _pool(exponents, predicted, single, curves.curve_R)
    _add_layers(exponents, predicted, single, curves.curve_R)
    return exponents.assign(
        predicted=predicted,
        lazy=conditions["lazy"].to_numpy(),
        clipped=pd.Categorical(conditions["clipped"], categories=CLIPS),
        eps_ratio=conditions["eps_ratio"].to_numpy(),
    )


def predicted_curve(
    row: "pd.Series[Any]",
    exponents: pd.DataFrame,
    cells: pd.DataFrame,
    probes: pd.DataFrame,
    ranks: npt.ArrayLike,
) -> Floats | None:
    """The logarithm, up to a constant, of the curve whose slope is a row's ``predicted``, [ranks].

    ``row`` is one of ``exponents``, which has predictions. A pooled row has the mean over its
    layers, under the same conditions as its prediction. The model-wide descent under a spectral
    rule is the sum over layers. None if it has no prediction.
    """
    if not np.isfinite(row["predicted"]) or "lazy" not in exponents:
        return None
    same = np.ones(len(exponents), bool)
    for name in (*curve_columns(exponents), "site", "stat", "batch", "step"):
        same &= _equals(exponents[name], row[name])
    pooled = row["layer"] in POOLINGS
    added = row["kind"] == MODEL_WIDE and row["optimizer"] in of_family("spectral")
    mine = exponents["layer"] == row["layer"]
    if pooled or added:
        mine = ~exponents["layer"].isin(POOLINGS)
    if added:
        mine &= exponents["kind"] != MODEL_WIDE
    elif row["kind"] != ALL_KINDS:
        mine &= exponents["kind"] == row["kind"]
    place = np.flatnonzero(same & mine.to_numpy())
    rows = exponents.take(place)
    curves = RowCurves.of(rows, cells[np.isfinite(cells["rank"])])
    asked = _asked(rows, curves, np.arange(len(rows)), rows, probes)
    known = [
        np.log(mean_log_curve(one.site, one.stat, ranks, **one.setting))
        for one in questions(**_columns(asked, rows))
    ]
    if added:
        level = rows["log_stat_mean"].to_numpy(float) - np.mean(known, axis=1)
        return np.asarray(np.log(np.exp(level[:, None] + known).sum(axis=0)))
    return np.asarray(np.mean(known, axis=0))


def _equals(column: "pd.Series[Any]", value: Any) -> Mask:
    return (column.isna() if pd.isna(value) else column == value).to_numpy(bool)


def _has_theory(exponents: pd.DataFrame) -> Mask:
    """The rows whose optimizer and init theory knows."""
    powers = [name for name, init in INITS.items() if init.q is not None]
    known = exponents["optimizer"].isin(list(OPTIMIZERS)) & exponents["init"].isin(powers)
    return known.to_numpy()


def _of_single_layers(
    rows: pd.DataFrame,
    curves: RowCurves,
    place: Ints,
    conditions: pd.DataFrame,
    cells: pd.DataFrame,
    probes: pd.DataFrame,
) -> Floats:
    """Theory's slopes for ``rows``, those at ``place`` in the table: layers and model-wide rows.

    Most rows ask the same as another, so each distinct question is answered once.
    """
    asked = _asked(rows, curves, place, conditions, probes)
    number = numbered(asked, asked.columns)
    first = firsts(number)
    ranks = _ranks(asked.take(first), curves.of_cell, cells)
    return predicted_exponents(ranks=ranks, **_columns(asked.take(first), rows.take(first)))[number]


def _asked(
    rows: pd.DataFrame,
    curves: RowCurves,
    place: Ints,
    conditions: pd.DataFrame,
    probes: pd.DataFrame,
) -> pd.DataFrame:
    """What theory is asked about each row: the numbers of its layer and its conditions."""
    curve = curves.curve_R[place]
    lazy = conditions["lazy"].to_numpy(float)
    return layer_numbers(rows, curve, curves.of_cell, probes).assign(
        curve=curve,
        **{name: rows[name].array for name in ("site", "stat", "step", "rank_min", "rank_max")},
        clip=conditions["clipped"].to_numpy(),
        eps_ratio=conditions["eps_ratio"].to_numpy(),
        lazy=np.where(np.isnan(lazy), True, lazy == 1),
    )


def _columns(asked: pd.DataFrame, rows: pd.DataFrame) -> dict[str, Any]:
    """The fields of :class:`study.theory.columns.Question` for ``asked`` about ``rows``."""
    inits = [INITS[name] for name in rows["init"].astype(str)]
    others = (*LAYER_NUMBERS, "clip", "eps_ratio", "lazy")
    return {
        "site": rows["site"].astype(str).to_numpy(),
        "stat": rows["stat"].astype(str).to_numpy(),
        "step": rows["step"].to_numpy(int),
        "optimizer": rows["optimizer"].astype(str).to_numpy(),
        "p": rows["exponent_p"].to_numpy(float),
        "init": [init.drawn for init in inits],
        "q": [float(init.q or 0.0) for init in inits],
        "kurtosis": [init.kurtosis for init in inits],
        "decay": _decay(rows),
        **{name: asked[name].to_numpy() for name in others if name in asked},
        **spectral_columns(asked, rows),
    }


def adjustments(rows: pd.DataFrame) -> npt.NDArray[Any]:
    """By row Muon's factor on an update; torch's default where the optimizer has none."""
    if "adjust_lr_fn" not in rows:
        return np.full(len(rows), ADJUSTMENTS[0], object)
    known = rows["adjust_lr_fn"].astype(object)
    return known.where(known.isin(ADJUSTMENTS), ADJUSTMENTS[0]).to_numpy()


def spectral_columns(asked: pd.DataFrame, rows: pd.DataFrame) -> dict[str, Any]:
    """What only a spectral rule depends on: its factor, and the rank of the layer's gradient.

    That rank is at most the number of tokens of a step and the smaller side of the layer. It is
    given for rows whose ranks do not exceed this bound, where theory needs no more than that they
    do not: the gradients of several steps have more directions, and padded batches fewer. It is NaN
    elsewhere, and where fewer Newton-Schulz steps leave the singular values unequal. ``r_nuc`` is
    NaN there too.
    """
    columns = {"adjust": adjustments(rows)}
    unequal = (
        rows["ns_steps"].to_numpy(float) < ORTHOGONAL_FROM
        if "ns_steps" in rows
        else np.zeros(len(rows), bool)
    )
    if "r_nuc" in asked:
        columns["r_nuc"] = np.where(unequal, np.nan, asked["r_nuc"].to_numpy(float))
    sizes = ("sequence_length", "batch_size", "accumulation")
    if "d_in" not in asked or not set(sizes) <= set(rows):
        return columns
    sides = [asked[side].to_numpy(float) for side in ("d_in", "d_out")]
    tokens = np.prod([rows[size].to_numpy(float) for size in sizes], axis=0)
    most = np.min([*sides, tokens], axis=0)
    within = (asked["rank_max"].to_numpy(float) <= most) & ~unequal
    return columns | {"g_rank": np.where(within, most, np.nan)}


def _ranks(
    asked: pd.DataFrame, of_cell: "pd.Series[int]", cells: pd.DataFrame
) -> list[Sequence[float]]:
    """The finite ranks of each row's curve between the row's lowest and highest."""
    rank = cells["rank"].to_numpy(float)
    by_curve = {curve: np.unique(rank[(of_cell == curve).to_numpy()]) for curve in set(of_cell)}
    keys = zip(asked["curve"], asked["rank_min"], asked["rank_max"], strict=True)
    return [tuple(r for r in by_curve[curve] if low <= r <= high) for curve, low, high in keys]


def _decay(rows: pd.DataFrame) -> npt.NDArray[Any]:
    if "weight_decay" not in rows:
        return np.full(len(rows), "none", object)
    pairs = zip(rows["optimizer"].astype(str), rows["weight_decay"].astype(float), strict=True)
    return np.array([decay_of(name, decay) for name, decay in pairs], object)


def _add_layers(exponents: pd.DataFrame, predicted: Floats, single: Ints, curve: Ints) -> None:
    """Fill the model-wide rows of descent that have no prediction of their own.

    A layer's weight is its mean descent over ranks and seeds.
    """
    wide = (exponents["kind"] == MODEL_WIDE).to_numpy()
    sums = wide & (exponents["stat"] == DESCENT.stat).to_numpy() & np.isnan(predicted)
    if not sums.any():
        return
    quantity = numbered(exponents, ["site", "stat", "batch", "step"], curve)
    layers = single[~wide[single]]
    weight = pd.Series(np.exp(exponents["log_stat_mean"].to_numpy(float)[layers]))
    terms = pd.DataFrame({"slope": weight * predicted[layers], "weight": weight})
    totals = terms.groupby(quantity[layers]).sum(min_count=1)
    mean = (totals["slope"] / totals["weight"]).where(
        terms["slope"].isna().groupby(quantity[layers]).sum() == 0
    )
    predicted[sums] = mean.reindex(quantity[sums]).to_numpy()


def _pool(exponents: pd.DataFrame, predicted: Floats, single: Ints, curve: Ints) -> None:
    """Fill the pooled rows of ``predicted`` from those of their layers."""
    quantity = numbered(exponents, ["site", "stat", "batch", "step"], curve)
    of_kind = numbered(exponents, ["kind"], quantity)
    layers = single[(exponents["kind"].take(single) != MODEL_WIDE).to_numpy()]
    is_mean = (exponents["layer"] == MEAN_LOG).to_numpy()
    over_all_kinds = (exponents["kind"] == ALL_KINDS).to_numpy()
    pooled = exponents["layer"].isin(POOLINGS).to_numpy()
    for group, here in (
        (of_kind, pooled & ~over_all_kinds),
        (quantity, pooled & over_all_kinds),
    ):
        of_layer = pd.Series(predicted[layers]).groupby(group[layers])
        # If one layer has no prediction, the pool has none: the mean would be over other layers.
        mean = of_layer.mean().where(of_layer.count() == of_layer.size())
        agreed = of_layer.max() - of_layer.min() < LAYERS_AGREE
        asked = group[here]
        taken = is_mean[here] | agreed.reindex(asked, fill_value=False).to_numpy()
        predicted[here] = np.where(taken, mean.reindex(asked).to_numpy(), np.nan)
