"""The column ``predicted`` of ``exponents``: the slope that theory predicts for the same ranks.

A prediction depends on what the tables hold of a curve: its rule and init, the alignments that its
probes recorded, whether gradients were clipped or small beside eps, and whether its steps were lazy
(the loss changed as its linearisation predicts). If one of these is missing, the quantities that
depend on it have no prediction.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from study.analysis.fits import Floats, Ints, Mask
from study.analysis.grouping import codes, curve_columns, curve_labels, firsts, numbered
from study.analysis.layer_numbers import LAYER_NUMBERS, layer_numbers
from study.theory import Layer, Modifiers, mean_log_curve, predicted_exponent
from study.theory.asymptotics import CLIPS
from study.theory.spectral import ORTHOGONAL_FROM
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import ADJUSTMENTS, OPTIMIZERS, decay_of, of_family
from study.vocabulary.quantities import ALL_KINDS, DESCENT, MEAN_LOG, MODEL_WIDE, POOLINGS, TRAIN
from study.vocabulary.thresholds import LAZY_WITHIN


@dataclass(frozen=True)
class RowCurves:
    """The curve of each row of ``exponents`` and of each cell, as the same numbers.

    ``curve_R``: by row. ``of_cell``: by ``cell_id``. ``steps``: columns ``curve`` and ``step``, one
    row per pair that occurs; ``step_R`` says which of them a row has.
    """

    curve_R: Ints
    of_cell: "pd.Series[int]"
    steps: pd.DataFrame
    step_R: Ints

    @classmethod
    def of(cls, exponents: pd.DataFrame, cells: pd.DataFrame) -> "RowCurves":
        """Match the rows of ``exponents`` with the cells they were fitted to, by their labels."""
        labels = curve_labels(cells)
        names = [name for name in curve_columns(exponents) if name in labels]
        of_row = numbered(exponents, names)
        distinct = exponents[names].take(firsts(of_row))
        both = pd.concat([distinct, labels[names]], ignore_index=True).astype(str)
        number = numbered(both, names)
        curve_R = number[: len(distinct)][of_row]
        step_R = numbered(exponents, ["step"], curve_R)
        first = firsts(step_R)
        step = exponents["step"].to_numpy(int)
        return cls(
            curve_R=curve_R,
            of_cell=pd.Series(number[len(distinct) :], index=cells["cell_id"].astype(str)),
            steps=pd.DataFrame({"curve": curve_R[first], "step": step[first]}),
            step_R=step_R,
        )

    def up_to_step(self, values: "pd.Series[Any]", missing: float) -> Floats:
        """By row: the last of ``values`` (over curve, step) that is not after the row's step."""
        known = values.astype(float).rename_axis(["curve", "step"]).rename("value").reset_index()
        known = known.astype({"curve": int, "step": int}).sort_values("step", kind="stable")
        asked = self.steps.astype(int).reset_index().sort_values("step", kind="stable")
        found = pd.merge_asof(asked, known, on="step", by="curve").set_index("index")["value"]
        return found.reindex(self.steps.index).fillna(missing).to_numpy(float)[self.step_R]


def clipping(curves: RowCurves, metrics: pd.DataFrame) -> npt.NDArray[Any]:
    """By row ``never``, ``always`` or ``some``: how many of the gradients were clipped."""
    factors = metrics.dropna(subset=["clip_factor"])
    of_curve = factors["cell_id"].astype(str).map(curves.of_cell).to_numpy()
    clipped = factors["clip_factor"] < 1
    by_step = clipped.groupby([of_curve, factors["step"].to_numpy(int)]).agg(["min", "max"])
    some = curves.up_to_step(by_step["max"].groupby(level=0).cummax(), missing=0.0) > 0
    every = curves.up_to_step(by_step["min"].groupby(level=0).cummin(), missing=0.0) > 0
    return np.where(every, "always", np.where(some, "some", "never")).astype(object)


def eps_ratios(
    curves: RowCurves, exponents: pd.DataFrame, cells: pd.DataFrame, probes: pd.DataFrame
) -> Floats:
    """By row the smallest rms(gradient) / eps, median over layers; infinite if it is not known.

    It is that of the random factor for that factor's own sites, and that of the trained factor,
    which moves first, for all others.
    """
    if "eps" not in cells or cells["eps"].isna().all() or "rms" not in probes:
        return np.full(len(exponents), math.inf)
    eps = pd.Series(cells["eps"].to_numpy(float), index=cells["cell_id"].astype(str))
    about_A = _about_A(exponents)
    of_A, of_B = (_smallest_ratio(curves, eps, probes, factor) for factor in "AB")
    return np.nan_to_num(np.where(about_A, of_A, of_B), nan=math.inf, posinf=math.inf)


def _about_A(exponents: pd.DataFrame) -> Mask:
    """The rows whose eps ratio is that of A's gradient."""
    drawn_B = [name for name, init in INITS.items() if init.drawn == "B"]
    on_A, on_B = (exponents["site"].isin([f"{f}_grad", f"{f}_update"]).to_numpy() for f in "AB")
    return np.where(exponents["init"].isin(drawn_B), ~on_B, on_A)


def _smallest_ratio(
    curves: RowCurves, eps: "pd.Series[float]", probes: pd.DataFrame, factor: str
) -> Floats:
    """By row the smallest rms(gradient of ``factor``) / eps so far; infinite if not measured."""
    cell_N, ids = codes(probes["cell_id"])
    measured = (probes["site"] == f"{factor}_grad") & (probes["batch"] == TRAIN)
    row = np.flatnonzero(measured & (probes["rms"] > 0))
    step = probes["step"].to_numpy()[row].astype(int)
    rms = pd.Series(probes["rms"].to_numpy()[row]).groupby([cell_N[row], step]).median()
    cell = np.array(ids, object)[rms.index.get_level_values(0)]
    ratio = pd.Series(rms.to_numpy() / eps.reindex(cell).to_numpy())
    of_curve = curves.of_cell.reindex(cell).to_numpy()
    smallest = ratio.groupby([of_curve, rms.index.get_level_values(1).to_numpy()]).min()
    return curves.up_to_step(smallest.groupby(level=0).cummin(), missing=math.inf)


def laziness(curves: RowCurves, metrics: pd.DataFrame, probes: pd.DataFrame) -> Floats:
    """By row 1 if every probed step was lazy, 0 if one was not, NaN if that was not recorded."""
    if "loss_after" not in metrics or metrics["loss_after"].isna().all():
        return np.full(len(curves.curve_R), np.nan)
    ratios = lazy_ratios(metrics, probes)
    of_curve = pd.Series(curves.of_cell.reindex(ratios["cell_id"]).to_numpy(), index=ratios.index)
    lazy = ratios["ratio"].sub(1).abs() <= LAZY_WITHIN
    every = lazy.groupby([of_curve, ratios["step"]]).min()
    return curves.up_to_step(every.groupby(level=0).cummin(), missing=math.nan)


def lazy_ratios(metrics: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """The actual over the linearised loss change of every probed update.

    Columns: ``cell_id``, ``step``, ``ratio``, which is ``(loss - loss_after) / descent``.
    """
    of_updates = (probes["site"] == DESCENT.site) & (probes["batch"] == TRAIN)
    wide = probes[of_updates & (probes["layer"] == MODEL_WIDE)]
    wide = wide.assign(cell_id=wide["cell_id"].astype(str))
    descent = wide.reindex(columns=["cell_id", "step", DESCENT.stat])
    change = metrics["loss"] - metrics["loss_after"]
    changes = metrics.assign(cell_id=metrics["cell_id"].astype(str), change=change)
    joined = changes[["cell_id", "step", "change"]].merge(descent, on=["cell_id", "step"]).dropna()
    ratio = joined["change"] / joined[DESCENT.stat]
    return joined.assign(ratio=ratio)[["cell_id", "step", "ratio"]]


LAYER_FIELDS = (*LAYER_NUMBERS, "g_rank")
"""The fields of :class:`study.theory.Layer` that tables tell."""
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
        np.log(mean_log_curve(one["site"], one["stat"], ranks, **_setting(one)))
        for one in asked.to_dict("records")
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
    distinct = asked.take(firsts(number))
    answers: dict[Any, float] = {}
    found = []
    for one, ranks in zip(
        distinct.to_dict("records"), _ranks(distinct, curves.of_cell, cells), strict=True
    ):
        setting = _setting(one)
        key = (one["site"], one["stat"], ranks, *setting.values())
        if key not in answers:
            answers[key] = predicted_exponent(one["site"], one["stat"], ranks, **setting)
        found.append(answers[key])
    return np.array(found)[number]


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
    numbers = layer_numbers(rows, curve, curves.of_cell, probes)
    return numbers.assign(
        curve=curve,
        **{name: rows[name].astype(str).array for name in ("site", "stat", "optimizer", "init")},
        **{name: rows[name].array for name in ("step", "exponent_p", "rank_min", "rank_max")},
        decay=_decay(rows),
        clip=conditions["clipped"].to_numpy(),
        eps_ratio=conditions["eps_ratio"].to_numpy(),
        adjust=adjustments(rows),
        lazy=np.where(np.isnan(lazy), True, lazy == 1),
        **_spectral_numbers(numbers, rows),
    )


def _setting(asked: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of :func:`_asked` as the keyword arguments of theory's functions."""
    init = INITS[asked["init"]]
    known = {name: asked[name] for name in LAYER_FIELDS if name in asked}
    return {
        "step": int(asked["step"]),
        "optimizer": asked["optimizer"],
        "p": float(asked["exponent_p"]),
        "q": float(init.q or 0.0),
        "init": init.drawn,
        "layer": Layer(
            **{name: value for name, value in known.items() if not math.isnan(value)},
            kurtosis=init.kurtosis,
        ),
        "modifiers": Modifiers(
            decay=asked["decay"],
            clip=asked["clip"],
            eps_ratio=asked["eps_ratio"],
            adjust=asked["adjust"],
            lazy=bool(asked["lazy"]),
        ),
    }


def adjustments(rows: pd.DataFrame) -> npt.NDArray[Any]:
    """By row Muon's factor on an update; torch's default where the optimizer has none."""
    if "adjust_lr_fn" not in rows:
        return np.full(len(rows), ADJUSTMENTS[0], object)
    known = rows["adjust_lr_fn"].astype(object)
    return known.where(known.isin(ADJUSTMENTS), ADJUSTMENTS[0]).to_numpy()


def _spectral_numbers(numbers: pd.DataFrame, rows: pd.DataFrame) -> dict[str, Any]:
    """What only a spectral rule depends on: ``r_nuc`` and ``g_rank`` of the layer's gradient.

    That rank is at most the number of tokens of a step and the smaller side of the layer. It is
    given for rows whose ranks do not exceed this bound, where theory needs no more than that they
    do not: the gradients of several steps have more directions, and padded batches fewer. Both are
    NaN elsewhere, and where fewer Newton-Schulz steps leave the singular values unequal.
    """
    found: dict[str, Any] = {}
    unequal = np.zeros(len(rows), bool)
    if "ns_steps" in rows:
        unequal = rows["ns_steps"].to_numpy(float) < ORTHOGONAL_FROM
    if "r_nuc" in numbers:
        found["r_nuc"] = np.where(unequal, np.nan, numbers["r_nuc"].to_numpy(float))
    sizes = ("sequence_length", "batch_size", "accumulation")
    if "d_in" not in numbers or not set(sizes) <= set(rows):
        return found
    sides = [numbers[side].to_numpy(float) for side in ("d_in", "d_out")]
    tokens = np.prod([rows[size].to_numpy(float) for size in sizes], axis=0)
    most = np.min([*sides, tokens], axis=0)
    within = (rows["rank_max"].to_numpy(float) <= most) & ~unequal
    return found | {"g_rank": np.where(within, most, np.nan)}


def _ranks(
    asked: pd.DataFrame, of_cell: "pd.Series[int]", cells: pd.DataFrame
) -> list[tuple[float, ...]]:
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
