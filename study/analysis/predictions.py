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

from study.analysis.curves import curve_columns, curve_labels
from study.inits import INITS
from study.sites import MODEL_WIDE
from study.theory import FAMILIES, predicted_exponents
from study.theory.curves import MIDDLE_BACK

LAZY_WITHIN = 0.1
"""How far actual and linearised loss change may part, relative to the latter, for a prediction to be trusted."""

COUPLED = ("sgd", "momentum", "nesterov", "adam", "rmsprop")
POOLED = ("mean_log", "median")


def with_predictions(
    exponents: pd.DataFrame, cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame
) -> pd.DataFrame:
    """``exponents`` with ``predicted``, the slope of each row's finite-rank curve over its ranks (NaN: no prediction),
    and ``lazy``: 1 where every probed step up to the row's was, 0 where one was not, NaN where it was not recorded.

    A ``mean_log`` row is predicted by the mean of its layers' predictions (the slope of a mean is the mean of the
    slopes); a ``median`` row only where they all agree. Slopes under inits whose variance is no power of the rank, and
    under optimizers that theory has no family for, have no prediction.
    """
    curves = _Curves.of(exponents, cells)
    lazy = curves.lazy(exponents, metrics, probes)
    predicted = np.full(len(exponents), np.nan)

    known = (
        exponents["optimizer"].isin(FAMILIES).to_numpy()
        & exponents["init"].isin([name for name, init in INITS.items() if init.q is not None]).to_numpy()
    )
    single = known & ~exponents["layer"].isin(POOLED).to_numpy()
    rows = exponents[single]
    numbers = _alignments(rows, cells, probes)
    inits = [INITS[name] for name in rows["init"].astype(str)]
    predicted[single] = (
        predicted_exponents(
            rows["site"].astype(str).to_numpy(),
            rows["stat"].astype(str).to_numpy(),
            rows["step"].to_numpy(int),
            rows["optimizer"].astype(str).to_numpy(),
            rows["exponent_p"].to_numpy(float),
            curves.ranks(rows),
            init=[init.drawn for init in inits],
            q=[float(init.q or 0.0) for init in inits],
            kurtosis=[init.kurtosis for init in inits],
            **numbers,
            decay=_decay(rows),
            clip=curves.clipping(rows, metrics),
            eps_ratio=curves.eps_ratios(rows, probes),
            lazy=np.where(np.isnan(lazy[single]), True, lazy[single] == 1),
        )
        if single.any()
        else np.empty(0)
    )
    _pool(exponents, predicted, single)
    return exponents.assign(predicted=predicted, lazy=lazy)


class _Curves:
    """Cells by curve: what the rows of one curve have in common, looked up by the curve's number."""

    def __init__(self, of_row: npt.NDArray[np.integer[Any]], of_cell: "pd.Series[int]", cells: pd.DataFrame) -> None:
        self.of_row, self.of_cell, self.cells = of_row, of_cell, cells

    @classmethod
    def of(cls, exponents: pd.DataFrame, cells: pd.DataFrame) -> "_Curves":
        labels = curve_labels(cells)
        names = [name for name in curve_columns(exponents) if name in labels]
        both = pd.concat([exponents[names], labels[names]], ignore_index=True).astype(str)
        number = both.groupby(names, dropna=False, sort=False).ngroup().to_numpy()
        of_cell = pd.Series(number[len(exponents) :], index=cells["cell_id"].astype(str))
        return cls(number[: len(exponents)], of_cell, cells)

    def ranks(self, rows: pd.DataFrame) -> list[Sequence[float]]:
        """The finite ranks of each row's curve between its lowest and its highest."""
        rank = self.cells["rank"].to_numpy(float)
        by_curve = {c: np.unique(rank[(self.of_cell == c).to_numpy()]) for c in set(self.of_cell)}
        known: dict[tuple[int, float, float], tuple[float, ...]] = {}
        fits: list[Sequence[float]] = []
        for key in zip(self._curve(rows), rows["rank_min"], rows["rank_max"], strict=True):
            if key not in known:
                curve, low, high = key
                known[key] = tuple(r for r in by_curve[curve] if low <= r <= high)
            fits.append(known[key])
        return fits

    def clipping(self, rows: pd.DataFrame, metrics: pd.DataFrame) -> npt.NDArray[Any]:
        """``never``, ``always`` or ``some`` of a curve's steps were clipped."""
        clipped = metrics.dropna(subset=["clip_factor"])
        by_cell = (clipped["clip_factor"] < 1).groupby(clipped["cell_id"].astype(str)).agg(["min", "max"])
        by_curve = by_cell.groupby(self.of_cell.reindex(by_cell.index).to_numpy()).agg({"min": "min", "max": "max"})
        words = {
            curve: "always" if row["min"] else "some" if row["max"] else "never" for curve, row in by_curve.iterrows()
        }
        return np.array([words.get(curve, "never") for curve in self._curve(rows)], object)

    def eps_ratios(self, rows: pd.DataFrame, probes: pd.DataFrame) -> npt.NDArray[np.float64]:
        """The smallest over a curve's cells of rms(gradient) / eps, median over layers: of A for A's own sites, else of
        the factor that is trained first. Infinite where the optimizer has no eps."""
        if "eps" not in self.cells or self.cells["eps"].isna().all():
            return np.full(len(rows), math.inf)
        eps = pd.Series(self.cells["eps"].to_numpy(float), index=self.cells["cell_id"].astype(str))
        smallest = {}
        for gradient in ("A_grad", "B_grad"):
            of_site = probes[(probes["site"] == gradient) & (probes["batch"] == "train") & (probes["rms"] > 0)]
            cell = of_site["cell_id"].astype(str)
            rms = of_site["rms"].groupby([cell, of_site["step"]]).median().groupby(level=0).min()
            ratio = rms / eps.reindex(rms.index)
            smallest[gradient] = ratio.groupby(self.of_cell.reindex(ratio.index).to_numpy()).min()
        site = np.where(rows["site"].isin(["A_grad", "A_update"]), "A_grad", "B_grad")
        found = [smallest[s].get(curve, math.inf) for s, curve in zip(site, self._curve(rows), strict=True)]
        return np.nan_to_num(np.array(found, float), nan=math.inf, posinf=math.inf)

    def lazy(self, exponents: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Per row, whether all cells of the curve were lazy at every probed step up to the row's."""
        unknown = np.full(len(exponents), np.nan)
        if "loss_after" not in metrics or metrics["loss_after"].isna().all():
            return unknown
        ratios = lazy_ratios(metrics, probes)
        ratios = ratios.assign(curve=self.of_cell.reindex(ratios["cell_id"]).to_numpy())
        good = (ratios["ratio"].sub(1).abs() <= LAZY_WITHIN).groupby([ratios["curve"], ratios["step"]]).min()
        so_far = good.groupby(level=0).cummin()
        pairs = pd.DataFrame({"curve": self.of_row, "step": exponents["step"].to_numpy(int)})
        answers = so_far.astype(float).rename("lazy").reset_index().astype({"step": int}).sort_values("step")
        order = pairs.reset_index().sort_values("step")
        found = pd.merge_asof(order, answers, on="step", by="curve").set_index("index")["lazy"]
        return found.reindex(pairs.index).to_numpy(float)

    def _curve(self, rows: pd.DataFrame) -> npt.NDArray[np.integer[Any]]:
        return self.of_row[rows.index.to_numpy()]


def lazy_ratios(metrics: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """Actual over linearised loss change, ``(loss - loss_after) / descent``, of every probed update: ``cell_id``,
    ``step``, ``ratio``."""
    wide = probes[(probes["site"] == "adapter_update") & (probes["layer"] == MODEL_WIDE) & (probes["batch"] == "train")]
    descent = wide.assign(cell_id=wide["cell_id"].astype(str))[["cell_id", "step", "descent"]]
    changes = metrics.assign(cell_id=metrics["cell_id"].astype(str), change=metrics["loss"] - metrics["loss_after"])
    joined = changes[["cell_id", "step", "change"]].merge(descent, on=["cell_id", "step"]).dropna()
    return joined.assign(ratio=joined["change"] / joined["descent"])[["cell_id", "step", "ratio"]]


def _alignments(rows: pd.DataFrame, cells: pd.DataFrame, probes: pd.DataFrame) -> dict[str, npt.NDArray[np.float64]]:
    """Each row's layer sizes and alignments; these are means over ranks and seeds, being free of both while lazy."""
    numbers = [name for name in ("d_in", "d_out", "r_align", "r_sign", "r_back") if name in probes]
    if not numbers:
        return {}
    by = ["model", "data", "optimizer", "targets", "step", "batch", "layer"]
    here = probes[probes["site"].isin(["adapter_out", "adapter_in_grad", "delta_w"])]
    names = {"cell_id": str, "layer": str, "batch": str, "step": int}
    joined = here[["cell_id", "step", "batch", "layer", *numbers]].astype(names)
    joined = joined.merge(cells[["cell_id", "model", "data", "optimizer", "targets"]].astype(str), on="cell_id")
    means = joined.groupby(by, observed=True)[numbers].mean()
    found = means.reindex(pd.MultiIndex.from_frame(rows[by].astype({name: names.get(name, str) for name in by})))
    result = {name: found[name].to_numpy(float) for name in numbers}
    if "r_back" in result:  # theory's own middle value is within 0.013 of either end's slope
        result["r_back"] = np.where(np.isnan(result["r_back"]), MIDDLE_BACK, result["r_back"])
    return result


def _decay(rows: pd.DataFrame) -> npt.NDArray[Any]:
    if "weight_decay" not in rows:
        return np.full(len(rows), "none", object)
    coupled = rows["optimizer"].isin(COUPLED).to_numpy()
    return np.where(rows["weight_decay"].to_numpy(float) == 0, "none", np.where(coupled, "coupled", "decoupled"))


def _pool(exponents: pd.DataFrame, predicted: npt.NDArray[np.float64], single: npt.NDArray[np.bool_]) -> None:
    """Fill the pooled rows of ``predicted`` from their layers'."""
    by = [*curve_columns(exponents), "site", "stat", "batch", "step"]
    group = exponents[by].groupby(by, dropna=False, observed=True, sort=False).ngroup().to_numpy()
    kind = exponents["kind"].astype(str).to_numpy()
    layers = single & (kind != MODEL_WIDE)
    of_layer = pd.DataFrame({"group": group[layers], "kind": kind[layers], "predicted": predicted[layers]})
    # A single layer without a prediction leaves its pool without one: the mean would be of other layers.
    columns = {"mean": ("predicted", _mean), "low": ("predicted", "min"), "high": ("predicted", "max")}
    of_kind = of_layer.groupby(["group", "kind"]).agg(**columns)
    of_model = of_layer.assign(kind="all").groupby(["group", "kind"]).agg(**columns)
    pooled = exponents["layer"].isin(POOLED).to_numpy()
    keys = pd.MultiIndex.from_arrays([group[pooled], kind[pooled]], names=["group", "kind"])
    found = pd.concat([of_kind, of_model]).reindex(keys)
    is_mean = (exponents["layer"] == "mean_log").to_numpy()[pooled]
    agreed = (found["high"] - found["low"] < 1e-9).to_numpy()
    predicted[pooled] = np.where(is_mean | agreed, found["mean"].to_numpy(float), np.nan)


def _mean(values: "pd.Series[float]") -> float:
    return float(values.mean(skipna=False))
