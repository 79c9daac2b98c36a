"""The column ``predicted`` of ``exponents``: the slope that theory predicts for the same ranks.

A prediction depends on facts about a curve in the tables: its rule and init, and the sizes and
alignments of its layers; whether gradients were clipped or small next to eps; and whether steps
were lazy, so that the loss changed as its linearisation predicts. If a fact is missing, the
quantities that depend on it have no prediction.

Sizes and alignments are geometric means over the ranks and seeds of a curve. They do not depend on
rank or seed while training is lazy. At a large learning rate they do, so each curve has its own.
"""

import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from study.analysis.fits import Floats, Ints, Mask
from study.analysis.grouping import CURVE_ID, RULE, curve_labels, gammas, local_p, numbered
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


def smallest_so_far(
    rows: pd.DataFrame, of_cell: "pd.Series[int]", found: pd.DataFrame, missing: float
) -> Floats:
    """By row the smallest ``value`` of ``found`` in the cells of its curve, up to its step."""
    curve = found["cell_id"].astype(str).map(of_cell).rename("curve")
    lowest = found["value"].astype(float).groupby([curve, found["step"]]).min()
    known = lowest.groupby("curve").cummin().rename("value").reset_index()
    known = known.astype({"curve": int, "step": int}).sort_values("step", kind="stable")
    places = rows[["curve", "step"]].astype(int).assign(place=range(len(rows)))
    places = places.sort_values("step", kind="stable")
    both = pd.merge_asof(places, known, on="step", by="curve").sort_values("place")["value"]
    return both.fillna(missing).to_numpy(float)


def clipping(
    rows: pd.DataFrame, of_cell: "pd.Series[int]", metrics: pd.DataFrame
) -> npt.NDArray[Any]:
    """By row ``never``, ``always`` or ``some``: how many of the gradients were clipped."""
    factors = metrics.dropna(subset=["clip_factor"])
    is_clipped = factors["clip_factor"] < 1
    always = smallest_so_far(rows, of_cell, factors.assign(value=is_clipped), 0.0) > 0
    never = smallest_so_far(rows, of_cell, factors.assign(value=~is_clipped), 1.0) > 0
    return np.select([always, never], ["always", "never"], "some").astype(object)


def over_eps(cells: pd.DataFrame, probes: pd.DataFrame, factor: str) -> pd.DataFrame:
    """``ratio``: rms(gradient of a factor) / eps, median over layers, by ``cell_id`` and ``step``.
    NaN without an eps."""
    eps = cells.reindex(columns=["eps"])["eps"].set_axis(cells["cell_id"].astype(str)).astype(float)
    measured = (probes["site"] == f"{factor}_grad") & (probes["batch"] == TRAIN)
    gradients = probes[measured].reindex(columns=["cell_id", "step", "rms"]).query("rms > 0")
    medians = gradients.groupby(["cell_id", "step"], observed=True)["rms"].median().reset_index()
    of_cell = medians["cell_id"].astype(str).map(eps).astype(float)
    return medians.assign(ratio=medians["rms"] / of_cell)


def eps_ratios(
    rows: pd.DataFrame, of_cell: "pd.Series[int]", cells: pd.DataFrame, probes: pd.DataFrame
) -> Floats:
    """By row the smallest :func:`over_eps`; sites of the random factor use their own, others the
    trained factor's."""

    def smallest(factor: str) -> Floats:
        found = over_eps(cells, probes, factor)
        return smallest_so_far(rows, of_cell, found.assign(value=found["ratio"]), math.inf)

    drawn_B = [name for name, init in INITS.items() if init.drawn == "B"]
    on_A, on_B = (rows["site"].isin([f"{f}_grad", f"{f}_update"]).to_numpy() for f in "AB")
    about_A = np.where(rows["init"].isin(drawn_B), ~on_B, on_A)
    return np.where(about_A, smallest("A"), smallest("B"))


def laziness(
    rows: pd.DataFrame, of_cell: "pd.Series[int]", metrics: pd.DataFrame, probes: pd.DataFrame
) -> Floats:
    """By row 1 if every probed step was lazy, 0 if one was not, NaN if that was not recorded."""
    ratios = lazy_ratios(metrics, probes)
    is_lazy = ratios["ratio"].sub(1).abs() <= LAZY_WITHIN
    return smallest_so_far(rows, of_cell, ratios.assign(value=is_lazy), math.nan)


def lazy_ratios(metrics: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """The actual over the linearised loss change of every probed update: ``cell_id``, ``step``,
    ``ratio``."""
    of_updates = (probes["site"] == DESCENT.site) & (probes["batch"] == TRAIN)
    wide = probes[of_updates & (probes["layer"] == MODEL_WIDE)]
    wide = wide.assign(cell_id=wide["cell_id"].astype(str))
    descent = wide.reindex(columns=["cell_id", "step", DESCENT.stat])
    change = metrics["loss"] - metrics.get("loss_after", math.nan)
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
    rows, of_cell = _numbered(exponents, cells)
    conditions: dict[str, Any] = {
        "lazy": laziness(rows, of_cell, metrics, probes),
        "clipped": pd.Categorical(clipping(rows, of_cell, metrics), categories=CLIPS),
        "eps_ratio": eps_ratios(rows, of_cell, cells, probes),
    }
    powers = [name for name, init in INITS.items() if init.q is not None]
    has_theory = exponents["optimizer"].isin(list(OPTIMIZERS)) & exponents["init"].isin(powers)
    single = np.flatnonzero(has_theory & ~exponents["layer"].isin(POOLINGS))
    predicted = np.full(len(exponents), np.nan)
    if len(single):
        asked = _asked(rows.assign(**conditions).take(single), of_cell, probes)
        predicted[single] = _answers(asked, of_cell, cells)
    _pool(rows, predicted, single)
    return exponents.assign(predicted=predicted, **conditions)


def _numbered(
    exponents: pd.DataFrame, cells: pd.DataFrame
) -> tuple[pd.DataFrame, "pd.Series[int]"]:
    """``exponents`` with a number in ``curve``, and the same number by ``cell_id``."""
    curve, ids = pd.factorize(exponents[CURVE_ID])
    of_cell = ids.get_indexer(pd.Index(curve_labels(cells)[CURVE_ID]))
    return exponents.assign(curve=curve), pd.Series(of_cell, index=cells["cell_id"].astype(str))


def predicted_curve(
    row: "pd.Series[Any]",
    exponents: pd.DataFrame,
    cells: pd.DataFrame,
    probes: pd.DataFrame,
    ranks: Floats,
) -> Floats | None:
    """The logarithm, up to a constant, of the curve whose slope a ``mean_log`` row over all kinds
    has as ``predicted``, [ranks]; None without a prediction."""
    if not np.isfinite(row["predicted"]):
        return None
    names = [CURVE_ID, "site", "stat", "batch", "step"]
    layers = np.logical_and.reduce([exponents[name] == row[name] for name in names])
    layers &= ~exponents["layer"].isin(POOLINGS)
    rows, of_cell = _numbered(exponents[layers], cells[np.isfinite(cells["rank"])])
    asked = _asked(rows, of_cell, probes)
    known = []
    for one in asked.to_dict("records"):
        setting, place = _setting(one, 0.0), (one["site"], one["stat"])
        flat, power = mean_log_curve(*place, ranks, **setting), power_of_gamma(*place, **setting)
        known.append(np.log(flat) + power * np.log(gammas(row, ranks)))
    return np.asarray(np.mean(known, axis=0))


def _answers(asked: pd.DataFrame, of_cell: "pd.Series[int]", cells: pd.DataFrame) -> Floats:
    """Theory's slopes for the rows of :func:`_asked`, over the ranks of each row's curve between
    its lowest and highest. Many rows have equal inputs: each is computed once."""
    number = numbered(asked, asked.columns)
    rank = cells["rank"].to_numpy(float)
    by_curve = {curve: np.unique(rank[(of_cell == curve).to_numpy()]) for curve in set(of_cell)}
    predicted, found = cache(predicted_exponent), []
    for one in asked[~pd.Index(number).duplicated()].to_dict("records"):
        low, high = one["rank_min"], one["rank_max"]
        ranks = tuple(r for r in by_curve[one["curve"]] if low <= r <= high)
        setting = _setting(one, local_p(one, np.array(ranks)))
        found.append(predicted(one["site"], one["stat"], ranks, **setting))
    return np.array(found)[number]


def _asked(rows: pd.DataFrame, of_cell: "pd.Series[int]", probes: pd.DataFrame) -> pd.DataFrame:
    """The inputs of theory for each row: the numbers of its layer and its conditions."""
    lazy = rows["lazy"].to_numpy(float)
    decay = np.full(len(rows), "none", object)
    if "weight_decay" in rows:
        pairs = zip(rows["optimizer"].astype(str), rows["weight_decay"].astype(float), strict=True)
        decay = np.array([decay_of(name, decay) for name, decay in pairs], object)
    return layer_numbers(rows, of_cell, probes).assign(
        **{name: rows[name].astype(str).array for name in ("site", "stat", "optimizer", "init")},
        **{n: rows[n].array for n in ("curve", "step", *RULE, "rank_min", "rank_max")},
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


def _pool(exponents: pd.DataFrame, predicted: Floats, single: Ints) -> None:
    """Fill the pooled rows of ``predicted`` from those of their layers, and the model-wide rows of
    descent that have no prediction of their own. In these a layer's weight is its mean descent over
    ranks and seeds."""
    quantity = numbered(exponents, ["curve", "site", "stat", "batch", "step"])
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

PLACE = ["curve", "step", "batch", "layer"]


def mean_layers(rows: pd.DataFrame, names: Iterable[str], kurtosis: float) -> list[Layer]:
    """The layers in some rows of ``probes``, with the geometric means over rows of the columns
    ``names``; what was not recorded is unknown."""
    logs = rows.reindex(columns=[*names]).astype(float).transform(np.log)
    means = logs.groupby(rows["layer"].astype(str)).mean().transform(np.exp)
    known = [row[np.isfinite(row)].to_dict() for _, row in means.iterrows()]
    return [Layer(**one, kurtosis=kurtosis) for one in known]


def layer_numbers(
    rows: pd.DataFrame, of_cell: "pd.Series[int]", probes: pd.DataFrame
) -> pd.DataFrame:
    """:data:`LAYER_FIELDS` of ``rows``; NaN if not recorded.

    ``r_eff`` is that of the layer's weight gradient, or for a row over the whole model that of the
    gradients of all layers together. Under a spectral rule ``r_eff`` and ``r_nuc`` are those of the
    gradient of one step, the first. The others are NaN in rows whose curve does not need them:
    under a spectral rule every row needs the sizes of its layer.
    """
    names = [name for name in RECORDED if name in probes]
    places = rows[PLACE].astype({"batch": str, "layer": str}).reset_index(drop=True)
    columns = [*dict.fromkeys([*names, "r_eff"])]
    result = pd.DataFrame(np.nan, index=places.index, columns=columns)
    here = np.flatnonzero(_may_cross(probes))
    if not names or not len(here):
        return result
    means = _means(probes, here, names, of_cell)
    step = places["step"].to_numpy(int)
    early = step <= LAST_PREDICTED_STEP
    spectral = rows["optimizer"].isin(of_family("spectral")).to_numpy()
    crossed = _may_cross(rows) | (spectral & early)
    result.loc[crossed, names] = _at(means, places[crossed])[names].to_numpy(float)
    if "r_back" in result:
        result["r_back"] = result["r_back"].fillna(MIDDLE_BACK)
    if "r_align" in names:
        of_step = np.where(spectral, 1, np.maximum(step, 1))  # that of step 1 is about step 0's
        of_train = _at(means, places.assign(step=of_step, batch=TRAIN)[early])
        result["r_eff"] = np.nan
        result.loc[early, "r_eff"] = _shares(of_train)
        wide = early & (places["layer"] == MODEL_WIDE).to_numpy()
        if wide.any():
            about = places[wide].assign(**{n: rows[n].to_numpy()[wide] for n in ("site", "stat")})
            result.loc[wide, "r_eff"] = _shares_of_models(about, of_cell, probes, means)
        result["r_eff"] = result["r_eff"].round(2) ** -2  # rounded so that rows repeat
        if "r_nuc" in names:
            result["r_nuc"] = np.nan
            result.loc[early, "r_nuc"] = of_train["r_nuc"].where(spectral[early]).to_numpy(float)
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
    probes: pd.DataFrame, here: Ints, columns: list[str], of_cell: "pd.Series[int]"
) -> pd.DataFrame:
    """Geometric means of ``columns`` over the cells of a curve, in the rows ``here``: a row per
    :data:`PLACE`."""
    rows = probes[["cell_id", *PLACE[1:], *columns]].take(here)
    rows = rows.astype({"cell_id": str, "batch": str, "layer": str})
    with np.errstate(divide="ignore", invalid="ignore"):
        rows[columns] = np.log(rows[columns].astype(float))
    rows = rows.assign(curve=rows["cell_id"].map(of_cell))
    return rows.groupby(PLACE)[columns].mean().transform(np.exp).reset_index()


def _at(means: pd.DataFrame, places: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``means`` at given places; NaN where there are none."""
    return places[PLACE].merge(means, on=PLACE, how="left")


def _shares(known: pd.DataFrame) -> Floats:
    """Theory's ``share`` of each row of ``known``, from its ``r_align`` and ``r_eff``."""
    pair = known.reindex(columns=["r_align", "r_eff"]).to_numpy(float)
    distinct, where = np.unique(pair, axis=0, return_inverse=True, equal_nan=True)
    return np.array([Layer(r_align=a, r_eff=b).share for a, b in distinct])[where.ravel()]


def _shares_of_models(
    rows: pd.DataFrame, of_cell: "pd.Series[int]", probes: pd.DataFrame, means: pd.DataFrame
) -> Floats:
    """By row the share of the gradients of all layers together: ``|w share| / sum w``, w the
    layer's descent or squared norm."""
    found, by = np.full(len(rows), np.nan), PLACE[:-1]
    is_descent = (rows["stat"] == DESCENT.stat).to_numpy()
    single = (probes["layer"] != MODEL_WIDE) & (probes["step"] <= LAST_PREDICTED_STEP)
    for site in rows["site"].astype(str).unique():
        here = np.flatnonzero(single & (probes["site"] == site))
        for column, power, about in ((DESCENT.stat, 1, is_descent), ("norm", 2, ~is_descent)):
            asked = about & (rows["site"] == site).to_numpy()
            if column not in probes or not len(here) or not asked.any():
                continue
            layers = _means(probes, here, [column], of_cell)
            share = _shares(_at(means, layers.assign(step=layers["step"].clip(1), batch=TRAIN)))
            weight = layers[column] ** power
            square = (weight * share) ** 2
            terms = layers[by].assign(square=square, weight=weight.where(square.notna()))
            sums = terms.groupby(by).sum(min_count=1).reset_index()
            sums = rows.loc[asked, by].merge(sums, on=by, how="left")
            found[asked] = sums["square"] ** 0.5 / sums["weight"]
    return found


def _may_cross(rows: pd.DataFrame) -> Mask:
    """The rows whose finite-rank curve may have a crossover, at steps with predictions."""
    return (rows["site"].isin(PRODUCTS) & (rows["step"] <= LAST_PREDICTED_STEP)).to_numpy()
