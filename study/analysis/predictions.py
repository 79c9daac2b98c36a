"""The column ``predicted`` of ``exponents``: the slope that theory predicts for the same ranks.

A prediction depends on facts about a curve in the tables: its rule and init, and the sizes and
alignments of its layers; whether gradients were clipped or small next to eps; and whether steps
were lazy, so that the loss changed as its linearisation predicts. If a fact is missing, the
quantities that depend on it have no prediction.

Sizes and alignments are geometric means over the ranks and seeds of a curve. They do not depend on
rank or seed while training is lazy. At a large learning rate they do, so each curve has its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from study.analysis.fits import Floats, Ints, Mask
from study.analysis.grouping import (
    RULE,
    codes,
    curve_columns,
    curve_labels,
    firsts,
    gammas,
    local_p,
    numbered,
)
from study.theory import Layer, Modifiers, mean_log_curve, power_of_gamma, predicted_exponent
from study.theory.asymptotics import CLIPS
from study.theory.layers import MIDDLE_BACK
from study.theory.spectral import ORTHOGONAL_FROM
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import ADJUSTMENTS, OPTIMIZERS, decay_of, of_family
from study.vocabulary.quantities import (
    ALIGNMENTS,
    ALL_KINDS,
    DESCENT,
    MEAN_LOG,
    MODEL_WIDE,
    POOLINGS,
    PRODUCTS,
    TRAIN,
)
from study.vocabulary.thresholds import LAST_PREDICTED_STEP, LAZY_WITHIN

RECORDED = ("d_in", "d_out", *ALIGNMENTS)
"""The columns of ``probes`` that finite-rank curves depend on."""
LAYER_FIELDS = tuple(dict.fromkeys([*RECORDED, "r_eff", "g_rank"]))
"""The fields of :class:`study.theory.Layer` that come from tables."""
LAYERS_AGREE = 0.02
"""The median over layers has a prediction if those of its layers span less than this."""


@dataclass(frozen=True)
class RowCurves:
    """The curve of each row of ``exponents``, of each cell by ``cell_id``, as the same numbers;
    and the step of each row."""

    curve_R: Ints
    step_R: Ints
    of_cell: "pd.Series[int]"

    @classmethod
    def of(cls, exponents: pd.DataFrame, cells: pd.DataFrame) -> "RowCurves":
        """Match the rows of ``exponents`` with the cells they were fitted to, by their labels."""
        labels = curve_labels(cells)
        names = [name for name in curve_columns(exponents) if name in labels]
        of_row = numbered(exponents, names)
        distinct = exponents[names].take(firsts(of_row))
        both = pd.concat([distinct, labels[names]], ignore_index=True).astype(str)
        number = numbered(both, names)
        return cls(
            curve_R=number[: len(distinct)][of_row],
            step_R=exponents["step"].to_numpy(int),
            of_cell=pd.Series(number[len(distinct) :], index=cells["cell_id"].astype(str)),
        )

    def up_to_step(self, values: "pd.Series[Any]", missing: float) -> Floats:
        """By row: the last of ``values`` (over curve, step) that is not after the row's step."""
        known = values.astype(float).rename_axis(["curve", "step"]).rename("value").reset_index()
        known = known.astype({"curve": int, "step": int}).sort_values("step", kind="stable")
        rows = pd.DataFrame({"curve": self.curve_R, "step": self.step_R}).astype(int)
        rows = rows.reset_index().sort_values("step", kind="stable")
        found = pd.merge_asof(rows, known, on="step", by="curve").set_index("index")["value"]
        return found.sort_index().fillna(missing).to_numpy(float)


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

    The sites of the random factor use its own ratio. All others use that of the trained factor,
    which moves first.
    """
    if "eps" not in cells or cells["eps"].isna().all() or "rms" not in probes:
        return np.full(len(exponents), math.inf)
    eps = pd.Series(cells["eps"].to_numpy(float), index=cells["cell_id"].astype(str))

    def smallest(factor: str) -> Floats:
        cell_N, ids = codes(probes["cell_id"])
        measured = (probes["site"] == f"{factor}_grad") & (probes["batch"] == TRAIN)
        row = np.flatnonzero(measured & (probes["rms"] > 0))
        step = probes["step"].to_numpy()[row].astype(int)
        rms = pd.Series(probes["rms"].to_numpy()[row]).groupby([cell_N[row], step]).median()
        cell = np.array(ids, object)[rms.index.get_level_values(0)]
        ratio = pd.Series(rms.to_numpy() / eps.reindex(cell).to_numpy())
        by = [curves.of_cell.reindex(cell).to_numpy(), rms.index.get_level_values(1).to_numpy()]
        return curves.up_to_step(ratio.groupby(by).min().groupby(level=0).cummin(), math.inf)

    drawn_B = [name for name, init in INITS.items() if init.drawn == "B"]
    on_A, on_B = (exponents["site"].isin([f"{f}_grad", f"{f}_update"]).to_numpy() for f in "AB")
    about_A = np.where(exponents["init"].isin(drawn_B), ~on_B, on_A)
    found = np.where(about_A, smallest("A"), smallest("B"))
    return np.nan_to_num(found, nan=math.inf, posinf=math.inf)


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


def with_predictions(
    exponents: pd.DataFrame, cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame
) -> pd.DataFrame:
    """``exponents`` with ``predicted``, the slope of each row's finite-rank curve over its ranks.

    NaN means no prediction. Three columns hold its conditions, over all cells of the curve and all
    steps up to the row's: ``lazy`` (:func:`laziness`), ``clipped`` (:func:`clipping`) and
    ``eps_ratio`` (:func:`eps_ratios`).

    Every prediction is the slope of the mean of the log over draws of the init, so it does not
    depend on the number of seeds (:mod:`study.theory.log_gaps`). A ``mean_log`` row is predicted by
    the mean of the predictions for its layers (the slope of a mean is the mean of the slopes). A
    ``median`` row is predicted only if the predictions for its layers agree within
    :data:`LAYERS_AGREE`. The descent of the whole model is the sum over its layers. If their slopes
    differ, as under Muon, the prediction is their mean, weighted by descent. There is no prediction
    for an init whose variance is not a power of the rank, nor for an optimizer that is not in the
    vocabulary.
    """
    cells = cells[np.isfinite(cells["rank"])]
    curves = RowCurves.of(exponents, cells)
    conditions: dict[str, Any] = {
        "lazy": laziness(curves, metrics, probes),
        "clipped": pd.Categorical(clipping(curves, metrics), categories=CLIPS),
        "eps_ratio": eps_ratios(curves, exponents, cells, probes),
    }
    powers = [name for name, init in INITS.items() if init.q is not None]
    has_theory = exponents["optimizer"].isin(list(OPTIMIZERS)) & exponents["init"].isin(powers)
    single = np.flatnonzero(has_theory & ~exponents["layer"].isin(POOLINGS))
    predicted = np.full(len(exponents), np.nan)
    if len(single):
        asked = _asked(exponents.assign(**conditions).take(single), curves, single, probes)
        predicted[single] = _answers(asked, curves.of_cell, cells)
    _pool(exponents, predicted, single, curves.curve_R)
    return exponents.assign(predicted=predicted, **conditions)


def predicted_curve(
    row: "pd.Series[Any]",
    exponents: pd.DataFrame,
    cells: pd.DataFrame,
    probes: pd.DataFrame,
    ranks: Floats,
) -> Floats | None:
    """The logarithm, up to a constant, of the curve whose slope is a row's ``predicted``, [ranks].

    A pooled row has the mean over its layers, under the same conditions as its prediction. The
    model-wide descent under a spectral rule is the sum over layers. None without a prediction.
    """
    if not np.isfinite(row["predicted"]) or "lazy" not in exponents:
        return None
    same = np.ones(len(exponents), bool)
    for name in (*curve_columns(exponents), "site", "stat", "batch", "step"):
        column = exponents[name]
        same &= (column.isna() if pd.isna(row[name]) else column == row[name]).to_numpy(bool)
    pooled = row["layer"] in POOLINGS
    added = row["kind"] == MODEL_WIDE and row["optimizer"] in of_family("spectral")
    mine = exponents["layer"] == row["layer"]
    if pooled or added:
        mine = ~exponents["layer"].isin(POOLINGS)
    if added:
        mine &= exponents["kind"] != MODEL_WIDE
    elif row["kind"] != ALL_KINDS:
        mine &= exponents["kind"] == row["kind"]
    rows = exponents.take(np.flatnonzero(same & mine.to_numpy()))
    curves = RowCurves.of(rows, cells[np.isfinite(cells["rank"])])
    asked = _asked(rows, curves, np.arange(len(rows)), probes)
    known = []
    for one in asked.to_dict("records"):
        setting, place = _setting(one, 0.0), (one["site"], one["stat"])
        flat, power = mean_log_curve(*place, ranks, **setting), power_of_gamma(*place, **setting)
        known.append(np.log(flat) + power * np.log(gammas(row, ranks)))
    if added:
        level = rows["log_stat_mean"].to_numpy(float) - np.mean(known, axis=1)
        return np.asarray(np.log(np.exp(level[:, None] + known).sum(axis=0)))
    return np.asarray(np.mean(known, axis=0))


def _answers(asked: pd.DataFrame, of_cell: "pd.Series[int]", cells: pd.DataFrame) -> Floats:
    """Theory's slopes for the rows of :func:`_asked`, over the finite ranks of each row's curve
    between its lowest and highest. Many rows have equal inputs: each is computed once."""
    number = numbered(asked, asked.columns)
    rank = cells["rank"].to_numpy(float)
    by_curve = {curve: np.unique(rank[(of_cell == curve).to_numpy()]) for curve in set(of_cell)}
    answers: dict[Any, float] = {}
    found = []
    for one in asked.take(firsts(number)).to_dict("records"):
        low, high = one["rank_min"], one["rank_max"]
        ranks = tuple(r for r in by_curve[one["curve"]] if low <= r <= high)
        setting = _setting(one, local_p(one, np.array(ranks)))
        key = (one["site"], one["stat"], ranks, *setting.values())
        if key not in answers:
            answers[key] = predicted_exponent(one["site"], one["stat"], ranks, **setting)
        found.append(answers[key])
    return np.array(found)[number]


def _asked(
    rows: pd.DataFrame, curves: RowCurves, place: Ints, probes: pd.DataFrame
) -> pd.DataFrame:
    """The inputs of theory for each row: the numbers of its layer and its conditions. ``place``: of
    the rows in the table of ``curves``."""
    curve = curves.curve_R[place]
    lazy = rows["lazy"].to_numpy(float)
    decay = np.full(len(rows), "none", object)
    if "weight_decay" in rows:
        pairs = zip(rows["optimizer"].astype(str), rows["weight_decay"].astype(float), strict=True)
        decay = np.array([decay_of(name, decay) for name, decay in pairs], object)
    numbers = layer_numbers(rows, curve, curves.of_cell, probes)
    return numbers.assign(
        curve=curve,
        **{name: rows[name].astype(str).array for name in ("site", "stat", "optimizer", "init")},
        **{name: rows[name].array for name in ("step", *RULE, "rank_min", "rank_max")},
        decay=decay,
        clip=rows["clipped"].astype(object).to_numpy(),
        eps_ratio=rows["eps_ratio"].to_numpy(float),
        adjust=adjustments(rows),
        lazy=np.where(np.isnan(lazy), True, lazy == 1),
    )


def _setting(asked: Mapping[Any, Any], p: float) -> dict[str, Any]:
    """A row of :func:`_asked` as the keyword arguments of theory's functions, at ``p``."""
    init = INITS[asked["init"]]
    known = {name: asked[name] for name in LAYER_FIELDS if name in asked}
    known = {name: value for name, value in known.items() if not math.isnan(value)}
    return {
        "step": int(asked["step"]),
        "optimizer": asked["optimizer"],
        "p": p,
        "q": float(init.q or 0.0),
        "init": init.drawn,
        "layer": Layer(**known, kurtosis=init.kurtosis),
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


def _pool(exponents: pd.DataFrame, predicted: Floats, single: Ints, curve: Ints) -> None:
    """Fill the pooled rows of ``predicted`` from those of their layers, and the model-wide rows of
    descent that have no prediction of their own. In these a layer's weight is its mean descent over
    ranks and seeds."""
    quantity = numbered(exponents, ["site", "stat", "batch", "step"], curve)
    wide, is_mean, over_all = (
        (exponents[name] == value).to_numpy()
        for name, value in (("kind", MODEL_WIDE), ("layer", MEAN_LOG), ("kind", ALL_KINDS))
    )
    layers = single[~wide[single]]
    pooled = exponents["layer"].isin(POOLINGS).to_numpy()
    of_kind = numbered(exponents, ["kind"], quantity)
    for group, here in ((of_kind, pooled & ~over_all), (quantity, pooled & over_all)):
        of_layer = pd.Series(predicted[layers]).groupby(group[layers])
        # If one layer has no prediction, the pool has none: the mean would be over other layers.
        mean = of_layer.mean().where(of_layer.count() == of_layer.size())
        agreed = of_layer.max() - of_layer.min() < LAYERS_AGREE
        asked = group[here]
        taken = is_mean[here] | agreed.reindex(asked, fill_value=False).to_numpy()
        predicted[here] = np.where(taken, mean.reindex(asked).to_numpy(), np.nan)
    sums = wide & (exponents["stat"] == DESCENT.stat).to_numpy() & np.isnan(predicted)
    weight = pd.Series(np.exp(exponents["log_stat_mean"].to_numpy(float)[layers]))
    terms = pd.DataFrame({"slope": weight * predicted[layers], "weight": weight})
    totals = terms.groupby(quantity[layers]).sum(min_count=1)
    unknown = terms["slope"].isna().groupby(quantity[layers]).sum()
    mean = (totals["slope"] / totals["weight"]).where(unknown == 0)
    predicted[sums] = mean.reindex(quantity[sums]).to_numpy()


# The numbers of layers.


def layer_numbers(
    rows: pd.DataFrame, curve: Ints, of_cell: "pd.Series[int]", probes: pd.DataFrame
) -> pd.DataFrame:
    """:data:`LAYER_FIELDS` of ``rows``, whose curves are ``curve``; NaN if not recorded.

    ``r_eff`` is that of the layer's weight gradient, or for a row over the whole model that of the
    gradients of all layers together. Under a spectral rule ``r_eff`` and ``r_nuc`` are those of the
    gradient of one step, the first. The others are NaN in rows whose curve does not need them:
    under a spectral rule every row needs the sizes of its layer.
    """
    names = [name for name in RECORDED if name in probes]
    columns = [*dict.fromkeys([*names, "r_eff"])]
    result = pd.DataFrame(np.nan, index=range(len(rows)), columns=columns)
    here = np.flatnonzero(_may_cross(probes))
    if not names or not len(here):
        return result
    means = _means(probes, here, names, of_cell)
    step, layer = rows["step"].to_numpy(int), rows["layer"].astype(str).to_numpy(object)
    early = step <= LAST_PREDICTED_STEP
    spectral = rows["optimizer"].isin(of_family("spectral")).to_numpy()
    crossed = _may_cross(rows) | (spectral & early)
    batch = rows["batch"].astype(str).to_numpy(object)
    known = _at(means, curve[crossed], step[crossed], batch[crossed], layer[crossed])
    result.loc[crossed, names] = known.to_numpy(float)
    if "r_back" in result:
        result["r_back"] = result["r_back"].fillna(MIDDLE_BACK)
    if "r_align" in names:
        of_step = np.where(spectral, 1, np.maximum(step, 1))  # that of step 1 is about step 0's
        of_train = _at(means, curve, of_step, TRAIN, layer)
        share = _shares(of_train[early])
        wide = layer[early] == MODEL_WIDE
        if wide.any():
            at = np.flatnonzero(early)[wide]
            share[wide] = _shares_of_models(rows.take(at), curve[at], of_cell, probes, means)
        result.loc[early, "r_eff"] = share.round(2) ** -2  # rounded so that rows repeat
        if "r_nuc" in names:
            result["r_nuc"] = of_train["r_nuc"].where(spectral & early).to_numpy(float)
    return _of_spectral_rules(result, rows)


def _of_spectral_rules(numbers: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """``numbers`` with ``g_rank``, the rank of the layer's gradient.

    That rank is at most the number of tokens of a step and the smaller side of the layer. Only rows
    whose ranks do not exceed this bound get it: the exact rank varies over steps and batches.
    ``g_rank`` and ``r_nuc`` are NaN if few Newton-Schulz steps leave singular values unequal.
    """
    unequal = np.zeros(len(rows), bool)
    if "ns_steps" in rows:
        unequal = rows["ns_steps"].to_numpy(float) < ORTHOGONAL_FROM
    if "r_nuc" in numbers:
        numbers["r_nuc"] = numbers["r_nuc"].mask(unequal)
    sizes = ("sequence_length", "batch_size", "accumulation")
    if "d_in" in numbers and set(sizes) <= set(rows):
        sides = [numbers[side].to_numpy(float) for side in ("d_in", "d_out")]
        tokens = np.prod([rows[size].to_numpy(float) for size in sizes], axis=0)
        most = np.min([*sides, tokens], axis=0)
        within = (rows["rank_max"].to_numpy(float) <= most) & ~unequal
        numbers["g_rank"] = np.where(within, most, np.nan)
    return numbers


def _means(
    probes: pd.DataFrame, here: Ints, columns: Sequence[str], of_cell: "pd.Series[int]"
) -> pd.DataFrame:
    """Geometric means of ``columns`` over the cells of a curve, in the rows ``here``: a row per
    curve, step, batch and layer."""
    rows = probes[["cell_id", "step", "batch", "layer", *columns]].take(here)
    words = [rows[name].astype(str).to_numpy(object) for name in ("cell_id", "batch", "layer")]
    by = [of_cell.reindex(words[0]).to_numpy(), rows["step"].to_numpy(int), *words[1:]]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = pd.DataFrame(np.log(rows[list(columns)].astype(float)))
    return logs.groupby(by).mean().transform(np.exp)


def _at(means: pd.DataFrame, curve: Any, step: Any, batch: Any, layer: Any) -> pd.DataFrame:
    """The rows of ``means`` at given places; NaN where there are none."""
    places = np.broadcast_arrays(curve, step, np.asarray(batch, object), layer)
    return means.reindex(pd.MultiIndex.from_arrays(places))


def _shares(known: pd.DataFrame) -> Floats:
    """Theory's ``share`` of each row of ``known``, from its ``r_align`` and ``r_eff``."""
    pair = known.reindex(columns=["r_align", "r_eff"]).to_numpy(float)
    distinct, where = np.unique(pair, axis=0, return_inverse=True, equal_nan=True)
    return np.array([Layer(r_align=a, r_eff=b).share for a, b in distinct])[where.ravel()]


def _shares_of_models(
    rows: pd.DataFrame,
    curve: Ints,
    of_cell: "pd.Series[int]",
    probes: pd.DataFrame,
    means: pd.DataFrame,
) -> Floats:
    """By row the share of the gradients of all layers together: ``|w share| / sum w``.

    ``w`` is a layer's part of the statistic: its descent, or the square of its norm.
    """
    found = np.full(len(rows), np.nan)
    is_descent = (rows["stat"] == DESCENT.stat).to_numpy()
    single = (probes["layer"] != MODEL_WIDE) & (probes["step"] <= LAST_PREDICTED_STEP)
    for site in rows["site"].astype(str).unique():
        here = np.flatnonzero(single & (probes["site"] == site))
        for column, power, about in ((DESCENT.stat, 1, is_descent), ("norm", 2, ~is_descent)):
            asked = about & (rows["site"] == site).to_numpy()
            if column not in probes or not len(here) or not asked.any():
                continue
            w = _means(probes, here, [column], of_cell)[column] ** power
            of_curve, step, _, layer = (w.index.get_level_values(k) for k in range(4))
            share = _shares(_at(means, of_curve, np.maximum(step, 1), TRAIN, layer))
            squares, by = (w * share) ** 2, [0, 1, 2]
            root = squares.groupby(level=by).sum(min_count=1) ** 0.5
            shares = root / w.where(squares.notna()).groupby(level=by).sum(min_count=1)
            keys = [curve[asked], rows["step"].to_numpy(int)[asked]]
            keys.append(rows["batch"].astype(str).to_numpy(object)[asked])
            found[asked] = shares.reindex(pd.MultiIndex.from_arrays(keys)).to_numpy(float)
    return found


def _may_cross(rows: pd.DataFrame) -> Mask:
    """The rows whose finite-rank curve may have a crossover, at steps with predictions."""
    return (rows["site"].isin(PRODUCTS) & (rows["step"] <= LAST_PREDICTED_STEP)).to_numpy()
