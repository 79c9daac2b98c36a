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
from study.theory.asymptotics import CLIPS
from study.theory.curves import MIDDLE_BACK

LAZY_WITHIN = 0.1
"""How far actual and linearised loss change may part, relative to the latter, for a prediction to be trusted."""

COUPLED = ("sgd", "momentum", "nesterov", "adam", "rmsprop")
POOLED = ("mean_log", "median")


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
    slopes); a ``median`` row only where they all agree. Slopes under inits whose variance is no power of the rank, and
    under optimizers that theory has no family for, have no prediction.
    """
    curves = _Curves.of(exponents, cells[np.isfinite(cells["rank"])])
    lazy = curves.lazy(exponents, metrics, probes)
    clipped = curves.clipping(exponents, metrics)
    eps_ratio = curves.eps_ratios(exponents, probes)
    predicted = np.full(len(exponents), np.nan)

    known = (
        exponents["optimizer"].isin(FAMILIES).to_numpy()
        & exponents["init"].isin([name for name, init in INITS.items() if init.q is not None]).to_numpy()
    )
    single = known & ~exponents["layer"].isin(POOLED).to_numpy()
    rows = exponents[single]
    numbers = curves.alignments(rows, probes)
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
            clip=clipped[single],
            eps_ratio=eps_ratio[single],
            lazy=np.where(np.isnan(lazy[single]), True, lazy[single] == 1),
        )
        if single.any()
        else np.empty(0)
    )
    _pool(exponents, predicted, single)
    return exponents.assign(
        predicted=predicted, lazy=lazy, clipped=pd.Categorical(clipped, categories=CLIPS), eps_ratio=eps_ratio
    )


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

    def clipping(self, exponents: pd.DataFrame, metrics: pd.DataFrame) -> npt.NDArray[Any]:
        """Per row ``never``, ``always`` or ``some``: how many of its curve's gradients up to its step were clipped."""
        factors = metrics.dropna(subset=["clip_factor"])
        here = [factors["cell_id"].astype(str).map(self.of_cell).to_numpy(), factors["step"].to_numpy(int)]
        by_step = (factors["clip_factor"] < 1).groupby(here).agg(["min", "max"])
        some = self._so_far(exponents, by_step["max"].groupby(level=0).cummax(), missing=0.0) > 0
        every = self._so_far(exponents, by_step["min"].groupby(level=0).cummin(), missing=0.0) > 0
        return np.where(every, "always", np.where(some, "some", "never")).astype(object)

    def eps_ratios(self, exponents: pd.DataFrame, probes: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Per row the smallest rms(gradient) / eps over its curve's cells up to its step, median over layers: of the
        random factor for that factor's own sites, else of the trained one, which moves first."""
        ratio = np.full(len(exponents), math.inf)
        if "eps" not in self.cells or self.cells["eps"].isna().all() or "rms" not in probes:
            return ratio
        eps = pd.Series(self.cells["eps"].to_numpy(float), index=self.cells["cell_id"].astype(str))
        drawn = exponents["init"].astype(str).map({name: init.drawn for name, init in INITS.items()}).fillna("A")
        own = exponents["site"].isin(["A_grad", "A_update", "B_grad", "B_update"]).to_numpy()
        own = own & (exponents["site"].astype(str).str[0] == drawn).to_numpy()
        random, trained = drawn.to_numpy(), np.where(drawn == "A", "B", "A")
        factor = np.where(own, random, trained)
        for name in ("A", "B"):
            of_site = probes[(probes["site"] == f"{name}_grad") & (probes["batch"] == "train") & (probes["rms"] > 0)]
            cell = of_site["cell_id"].astype(str)
            rms = of_site["rms"].groupby([cell, of_site["step"].astype(int)]).median().rename("rms").reset_index()
            of_eps = rms["rms"].to_numpy() / eps.reindex(rms["cell_id"]).to_numpy()
            of_curve = self.of_cell.reindex(rms["cell_id"]).to_numpy()
            smallest = pd.Series(of_eps).groupby([of_curve, rms["step"].to_numpy()]).min().groupby(level=0).cummin()
            found = self._so_far(exponents, smallest, missing=math.inf)
            ratio = np.where(factor == name, found, ratio)
        return np.nan_to_num(ratio, nan=math.inf, posinf=math.inf)

    def alignments(self, rows: pd.DataFrame, probes: pd.DataFrame) -> dict[str, npt.NDArray[np.float64]]:
        """Each row's layer sizes and alignments: geometric means over the ranks and seeds of its curve, which they do
        not depend on while training is lazy. Curves are kept apart: at a large learning rate they do."""
        numbers = [name for name in ("d_in", "d_out", "r_align", "r_sign", "r_back") if name in probes]
        if not numbers:
            return {}
        here = probes[probes["site"].isin(["adapter_out", "adapter_in_grad", "delta_w"]).to_numpy()]
        curve = here["cell_id"].astype(str).map(self.of_cell).rename("curve")
        by = [curve, here["step"].astype(int), here["batch"].astype(str), here["layer"].astype(str)]
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = pd.DataFrame({name: np.log(here[name].to_numpy(float)) for name in numbers}, index=here.index)
        means = logs.groupby(by).mean()
        names = {"step": int, "batch": str, "layer": str}
        asked = rows[list(names)].astype(names)
        asked.insert(0, "curve", self._curve(rows))
        found = means.reindex(pd.MultiIndex.from_frame(asked))
        result = {name: np.exp(found[name].to_numpy(float)) for name in numbers}
        if "r_back" in result:  # theory's own middle value is within 0.013 of either end's slope
            result["r_back"] = np.where(np.isnan(result["r_back"]), MIDDLE_BACK, result["r_back"])
        return result

    def lazy(self, exponents: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Per row, whether all cells of the curve were lazy at every probed step up to the row's."""
        unknown = np.full(len(exponents), np.nan)
        if "loss_after" not in metrics or metrics["loss_after"].isna().all():
            return unknown
        ratios = lazy_ratios(metrics, probes)
        ratios = ratios.assign(curve=self.of_cell.reindex(ratios["cell_id"]).to_numpy())
        good = (ratios["ratio"].sub(1).abs() <= LAZY_WITHIN).groupby([ratios["curve"], ratios["step"]]).min()
        return self._so_far(exponents, good.groupby(level=0).cummin(), missing=math.nan)

    def _so_far(self, exponents: pd.DataFrame, by_step: "pd.Series[Any]", missing: float) -> npt.NDArray[np.float64]:
        """Each row's value of a series over (curve, step), at the last step there that is not after the row's."""
        answers = by_step.astype(float).rename_axis(["curve", "step"]).rename("value").reset_index()
        answers = answers.astype({"curve": int, "step": int}).sort_values("step", kind="stable")
        asked = pd.DataFrame({"curve": self.of_row.astype(int), "step": exponents["step"].to_numpy(int)})
        order = asked.reset_index().sort_values("step", kind="stable")
        found = pd.merge_asof(order, answers, on="step", by="curve").set_index("index")["value"]
        return found.reindex(asked.index).fillna(missing).to_numpy(float)

    def _curve(self, rows: pd.DataFrame) -> npt.NDArray[np.integer[Any]]:
        return self.of_row[rows.index.to_numpy()]


def lazy_ratios(metrics: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """Actual over linearised loss change, ``(loss - loss_after) / descent``, of every probed update: ``cell_id``,
    ``step``, ``ratio``."""
    wide = probes[(probes["site"] == "adapter_update") & (probes["layer"] == MODEL_WIDE) & (probes["batch"] == "train")]
    descent = wide.assign(cell_id=wide["cell_id"].astype(str)).reindex(columns=["cell_id", "step", "descent"])
    changes = metrics.assign(cell_id=metrics["cell_id"].astype(str), change=metrics["loss"] - metrics["loss_after"])
    joined = changes[["cell_id", "step", "change"]].merge(descent, on=["cell_id", "step"]).dropna()
    return joined.assign(ratio=joined["change"] / joined["descent"])[["cell_id", "step", "ratio"]]


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
