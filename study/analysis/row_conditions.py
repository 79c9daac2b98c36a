"""The training conditions that predictions depend on: clipping, eps and laziness.

Each is given per row of the ``exponents`` table, over all cells of the row's curve and all steps up
to the row's step.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from study.analysis.fits import Floats, Ints, Mask
from study.analysis.grouping import codes, curve_columns, curve_labels, firsts, numbered
from study.vocabulary.inits import INITS
from study.vocabulary.quantities import DESCENT, MODEL_WIDE, TRAIN
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
