"""The ``predicted`` and ``lazy`` columns: what theory says a fit over the same ranks should see.

Theory needs to know what the tables hold of a curve: its rule and init, the alignments that its probes recorded,
whether gradients were clipped or as small as eps, and whether a step was lazy, that is, whether the loss changed by
what its linearisation says. Where one of these is missing the quantity that depends on it has no prediction.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from study.analysis.fits import Floats, Ints
from study.analysis.grids import codes
from study.analysis.grouping import curve_columns, curve_labels, firsts, numbered
from study.theory import log_bias, predicted_exponents
from study.theory.asymptotics import CLIPS
from study.theory.curves import MIDDLE_BACK, MOMENTS
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import OPTIMIZERS, decay_of
from study.vocabulary.quantities import ALL_KINDS, MODEL_WIDE, POOLINGS, PRODUCTS
from study.vocabulary.thresholds import LAST_PREDICTED_STEP, LAZY_WITHIN

NUMBERS = ("d_in", "d_out", "r_align", "r_sign", "r_back")


def with_predictions(
    exponents: pd.DataFrame, cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame
) -> pd.DataFrame:
    """``exponents`` with ``predicted``, the slope of each row's finite-rank curve over its ranks (NaN: no prediction),
    and with what it depends on, over all cells of the curve and all steps up to the row's:

    - ``lazy``: 1 where every probed step was, 0 where one was not, NaN where it was not recorded;
    - ``clipped``: ``never``, ``always`` or ``some`` of the gradients were;
    - ``eps_ratio``: the smallest rms(gradient) / eps, median over layers, of the factor that the row is about; infinite
      where the optimizer has no eps or the gradient was not measured.

    A ``mean_log`` row is predicted by the mean of its layers' predictions (the slope of a mean is the mean of the
    slopes), less the slope of what a mean of logarithms lies under the logarithm of a mean, where there are seeds that
    tell how far they spread (:func:`~study.theory.log_bias`; over ranks from 4 up SGD's ``adapter_out`` is tilted by
    0.03); a ``median`` row only where its layers all agree. Slopes under inits whose variance is no power of the rank,
    and under optimizers that theory has no family for, have no prediction.
    """
    curves = _Curves.of(exponents, cells[np.isfinite(cells["rank"])])
    lazy = curves.lazy(metrics, probes)
    clipped = curves.clipping(metrics)
    eps_ratio = curves.eps_ratios(exponents, probes)
    known = (
        exponents["optimizer"].isin(list(OPTIMIZERS)).to_numpy()
        & exponents["init"]
        .isin([name for name, init in INITS.items() if init.q is not None])
        .to_numpy()
    )
    single = np.flatnonzero(known & ~exponents["layer"].isin(POOLINGS).to_numpy())
    predicted = np.full(len(exponents), np.nan)
    if len(single):
        rows = exponents[["site", "stat", "batch", "step", "layer", "rank_min", "rank_max"]].take(
            single
        )
        asked = curves.alignments(rows, single, probes).assign(
            curve=curves.of_row[single],
            **{name: rows[name].array for name in ("site", "stat", "step", "rank_min", "rank_max")},
            clip=clipped[single],
            eps_ratio=eps_ratio[single],
            lazy=np.where(np.isnan(lazy[single]), True, lazy[single] == 1),
        )
        number = numbered(asked, asked.columns)  # most rows ask what another has asked
        first = firsts(number)
        predicted[single] = curves.predictions(asked.take(first), exponents.take(single[first]))[
            number
        ]
    _pool(exponents, predicted, single, curves.of_row)
    predicted -= _bias_slopes(exponents)
    return exponents.assign(
        predicted=predicted,
        lazy=lazy,
        clipped=pd.Categorical(clipped, categories=CLIPS),
        eps_ratio=eps_ratio,
    )


class _Curves:
    """Cells and rows by curve: what the rows of one curve have in common is worked out once."""

    def __init__(
        self, exponents: pd.DataFrame, of_row: Ints, of_cell: "pd.Series[int]", cells: pd.DataFrame
    ) -> None:
        self.of_row, self.of_cell, self.cells = of_row, of_cell, cells
        self.place = numbered(exponents, ["step"], of_row)
        first = firsts(self.place)
        self.places = pd.DataFrame(
            {"curve": of_row[first], "step": exponents["step"].to_numpy(int)[first]}
        )

    @classmethod
    def of(cls, exponents: pd.DataFrame, cells: pd.DataFrame) -> "_Curves":
        labels = curve_labels(cells)
        names = [name for name in curve_columns(exponents) if name in labels]
        of_row = numbered(exponents, names)
        distinct = exponents[names].take(firsts(of_row))
        both = pd.concat([distinct, labels[names]], ignore_index=True).astype(str)
        number = numbered(both, names)
        of_cell = pd.Series(number[len(distinct) :], index=cells["cell_id"].astype(str))
        return cls(exponents, number[: len(distinct)][of_row], of_cell, cells)

    def predictions(self, asked: pd.DataFrame, rows: pd.DataFrame) -> Floats:
        """Theory's slopes for questions: ``asked`` of the rows ``rows`` of the table."""
        inits = [INITS[name] for name in rows["init"].astype(str)]
        return predicted_exponents(
            rows["site"].astype(str).to_numpy(),
            rows["stat"].astype(str).to_numpy(),
            rows["step"].to_numpy(int),
            rows["optimizer"].astype(str).to_numpy(),
            rows["exponent_p"].to_numpy(float),
            self._ranks(asked),
            init=[init.drawn for init in inits],
            q=[float(init.q or 0.0) for init in inits],
            kurtosis=[init.kurtosis for init in inits],
            decay=_decay(rows),
            **{
                name: asked[name].to_numpy()
                for name in (*NUMBERS, "clip", "eps_ratio", "lazy")
                if name in asked
            },
        )

    def _ranks(self, asked: pd.DataFrame) -> list[Sequence[float]]:
        """The finite ranks of each row's curve between its lowest and its highest."""
        rank = self.cells["rank"].to_numpy(float)
        by_curve = {c: np.unique(rank[(self.of_cell == c).to_numpy()]) for c in set(self.of_cell)}
        keys = zip(asked["curve"], asked["rank_min"], asked["rank_max"], strict=True)
        return [tuple(r for r in by_curve[curve] if low <= r <= high) for curve, low, high in keys]

    def clipping(self, metrics: pd.DataFrame) -> npt.NDArray[Any]:
        """Per row ``never``, ``always`` or ``some``: how many of its curve's gradients up to its step were clipped."""
        factors = metrics.dropna(subset=["clip_factor"])
        here = [
            factors["cell_id"].astype(str).map(self.of_cell).to_numpy(),
            factors["step"].to_numpy(int),
        ]
        by_step = (factors["clip_factor"] < 1).groupby(here).agg(["min", "max"])
        some = self._so_far(by_step["max"].groupby(level=0).cummax(), missing=0.0) > 0
        every = self._so_far(by_step["min"].groupby(level=0).cummin(), missing=0.0) > 0
        return np.where(every, "always", np.where(some, "some", "never")).astype(object)

    def eps_ratios(self, exponents: pd.DataFrame, probes: pd.DataFrame) -> Floats:
        """Per row the smallest rms(gradient) / eps over its curve's cells up to its step, median over layers: of the
        random factor for that factor's own sites, else of the trained one, which moves first."""
        ratio = np.full(len(exponents), math.inf)
        if "eps" not in self.cells or self.cells["eps"].isna().all() or "rms" not in probes:
            return ratio
        eps = pd.Series(self.cells["eps"].to_numpy(float), index=self.cells["cell_id"].astype(str))
        drawn_of = {name: init.drawn for name, init in INITS.items()}
        drawn_B = (
            exponents["init"]
            .isin([name for name, drawn in drawn_of.items() if drawn == "B"])
            .to_numpy()
        )
        of_A, of_B = (exponents["site"].isin([f"{f}_grad", f"{f}_update"]).to_numpy() for f in "AB")
        factor_A = np.where(
            drawn_B, ~of_B, of_A
        )  # the drawn factor's own sites ask for it, all others for the other
        cell_N, ids = codes(probes["cell_id"])
        for name, of_factor in (("A", factor_A), ("B", ~factor_A)):
            row = np.flatnonzero(
                (probes["site"] == f"{name}_grad")
                & (probes["batch"] == "train")
                & (probes["rms"] > 0)
            )
            steps = probes["step"].to_numpy()[row].astype(int)
            rms = pd.Series(probes["rms"].to_numpy()[row]).groupby([cell_N[row], steps]).median()
            cell = np.array(ids, object)[rms.index.get_level_values(0)]
            of_eps = rms.to_numpy() / eps.reindex(cell).to_numpy()
            of_curve = self.of_cell.reindex(cell).to_numpy()
            smallest = (
                pd.Series(of_eps)
                .groupby([of_curve, rms.index.get_level_values(1).to_numpy()])
                .min()
            )
            found = self._so_far(smallest.groupby(level=0).cummin(), missing=math.inf)
            ratio = np.where(of_factor, found, ratio)
        return np.nan_to_num(ratio, nan=math.inf, posinf=math.inf)

    def alignments(self, rows: pd.DataFrame, where: Ints, probes: pd.DataFrame) -> pd.DataFrame:
        """Layer sizes and alignments of ``rows`` (those at ``where`` in the table): geometric means over the ranks and
        seeds of its curve, which they do not depend on while training is lazy; NaN where no curve asks for them.
        Curves are kept apart: at a large learning rate they do depend."""
        names = [name for name in NUMBERS if name in probes]
        result = pd.DataFrame(np.nan, index=range(len(rows)), columns=names)
        crossed = (
            rows["site"].isin(PRODUCTS).to_numpy()
            & (rows["step"] <= LAST_PREDICTED_STEP).to_numpy()
        )
        here = np.flatnonzero(
            probes["site"].isin(PRODUCTS) & (probes["step"] <= LAST_PREDICTED_STEP)
        )
        if not names or not crossed.any() or not len(here):
            return result
        (cell_N, ids), (batch_N, batches), (layer_N, layers) = (
            codes(probes[n]) for n in ("cell_id", "batch", "layer")
        )
        curve = self.of_cell.reindex(ids).to_numpy()[cell_N[here]]
        by = [
            curve,
            probes["step"].to_numpy()[here].astype(int),
            batch_N[here].astype(int),
            layer_N[here].astype(int),
        ]
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = pd.DataFrame(
                {name: np.log(probes[name].to_numpy()[here].astype(float)) for name in names}
            )
        means = logs.groupby(by).mean()
        asked = rows[crossed]
        keys = [self.of_row[where[crossed]], asked["step"].to_numpy(int)]
        keys += [pd.Index(known).get_indexer(pd.Index(asked[name].astype(str))) for name, known in
                 (("batch", batches), ("layer", layers))]  # fmt: skip
        result.loc[crossed] = np.exp(means.reindex(pd.MultiIndex.from_arrays(keys)).to_numpy(float))
        if "r_back" in result:  # theory's own middle value is within 0.013 of either end's slope
            result["r_back"] = result["r_back"].fillna(MIDDLE_BACK)
        return result

    def lazy(self, metrics: pd.DataFrame, probes: pd.DataFrame) -> Floats:
        """Per row, whether all cells of the curve were lazy at every probed step up to the row's."""
        if "loss_after" not in metrics or metrics["loss_after"].isna().all():
            return np.full(len(self.of_row), np.nan)
        ratios = lazy_ratios(metrics, probes)
        ratios = ratios.assign(curve=self.of_cell.reindex(ratios["cell_id"]).to_numpy())
        good = (
            (ratios["ratio"].sub(1).abs() <= LAZY_WITHIN)
            .groupby([ratios["curve"], ratios["step"]])
            .min()
        )
        return self._so_far(good.groupby(level=0).cummin(), missing=math.nan)

    def _so_far(self, by_step: "pd.Series[Any]", missing: float) -> Floats:
        """Each row's value of a series over (curve, step), at the last step there that is not after the row's."""
        answers = by_step.astype(float).rename_axis(["curve", "step"]).rename("value").reset_index()
        answers = answers.astype({"curve": int, "step": int}).sort_values("step", kind="stable")
        order = self.places.astype(int).reset_index().sort_values("step", kind="stable")
        found = pd.merge_asof(order, answers, on="step", by="curve").set_index("index")["value"]
        return found.reindex(self.places.index).fillna(missing).to_numpy(float)[self.place]


def lazy_ratios(metrics: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """Actual over linearised loss change, ``(loss - loss_after) / descent``, of every probed update: ``cell_id``,
    ``step``, ``ratio``."""
    wide = probes[
        (probes["site"] == "adapter_update")
        & (probes["layer"] == MODEL_WIDE)
        & (probes["batch"] == "train")
    ]
    descent = wide.assign(cell_id=wide["cell_id"].astype(str)).reindex(
        columns=["cell_id", "step", "descent"]
    )
    changes = metrics.assign(
        cell_id=metrics["cell_id"].astype(str), change=metrics["loss"] - metrics["loss_after"]
    )
    joined = changes[["cell_id", "step", "change"]].merge(descent, on=["cell_id", "step"]).dropna()
    return joined.assign(ratio=joined["change"] / joined["descent"])[["cell_id", "step", "ratio"]]


def _decay(rows: pd.DataFrame) -> npt.NDArray[Any]:
    if "weight_decay" not in rows:
        return np.full(len(rows), "none", object)
    pairs = zip(rows["optimizer"].astype(str), rows["weight_decay"].astype(float), strict=True)
    return np.array([decay_of(name, decay) for name, decay in pairs], object)


def _pool(exponents: pd.DataFrame, predicted: Floats, single: Ints, curve: Ints) -> None:
    """Fill the pooled rows of ``predicted`` from their layers'."""
    quantity = numbered(exponents, ["site", "stat", "batch", "step"], curve)
    of_kind = numbered(exponents, ["kind"], quantity)
    layers = single[(exponents["kind"].take(single) != MODEL_WIDE).to_numpy()]
    is_mean, of_all = (
        exponents[name] == value for name, value in (("layer", "mean_log"), ("kind", ALL_KINDS))
    )
    pooled = exponents["layer"].isin(POOLINGS).to_numpy()
    for group, here in (
        (of_kind, pooled & ~of_all.to_numpy()),
        (quantity, pooled & of_all.to_numpy()),
    ):
        of_layer = pd.Series(predicted[layers]).groupby(group[layers])
        # A single layer without a prediction leaves its pool without one: the mean would be of other layers.
        mean = of_layer.mean().where(of_layer.count() == of_layer.size())
        agreed = of_layer.max() - of_layer.min() < 1e-9
        asked = group[here]
        taken = is_mean.to_numpy()[here] | agreed.reindex(asked, fill_value=False).to_numpy()
        predicted[here] = np.where(taken, mean.reindex(asked).to_numpy(), np.nan)


def _bias_slopes(exponents: pd.DataFrame) -> Floats:
    """How much the slope of a mean log lies above that of the log of a mean's root, row by row; 0: not known, or none.

    ``log_bias`` is a multiple of the variance over seeds, so that its slope is that multiple of the variance's.
    """
    spread = exponents["spread_slope"].fillna(0.0).to_numpy(float)
    number = numbered(exponents, ["site", "stat"])
    found = np.zeros(len(exponents))
    distinct = exponents[["site", "stat"]].take(firsts(number)).astype(str)
    for k, (site, stat) in enumerate(distinct.itertuples(index=False, name=None)):
        if stat in MOMENTS:
            found[number == k] = log_bias(site, stat, spread[number == k])
    return found
