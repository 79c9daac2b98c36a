"""Sizes and alignments of layers, by row of ``exponents``: what theory needs to know of a layer.

All are geometric means over the ranks and seeds of a curve: these numbers do not depend on rank or
seed while training is lazy. At a large learning rate they do, so curves are kept apart.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from study.analysis.fits import Floats, Ints, Mask
from study.analysis.grouping import codes
from study.theory import Layer
from study.theory.layers import MIDDLE_BACK
from study.vocabulary.optimizers import of_family
from study.vocabulary.quantities import ALIGNMENTS, DESCENT, MODEL_WIDE, PRODUCTS, TRAIN
from study.vocabulary.thresholds import LAST_PREDICTED_STEP

RECORDED = ("d_in", "d_out", *ALIGNMENTS)
"""The columns of ``probes`` that finite-rank curves depend on."""
LAYER_NUMBERS = tuple(dict.fromkeys([*RECORDED, "r_eff"]))
"""The columns of :func:`layer_numbers`: fields of :class:`study.theory.Layer`."""


def layer_numbers(
    rows: pd.DataFrame, curve: Ints, of_cell: "pd.Series[int]", probes: pd.DataFrame
) -> pd.DataFrame:
    """The numbers of the layers of ``rows``, whose curves are ``curve``; NaN if not recorded.

    ``r_eff`` is that of the layer's weight gradient, or for a row over the whole model that of the
    gradients of all layers together. Under a spectral rule ``r_eff`` and ``r_nuc`` are those of the
    gradient of one step, the first. The others are NaN in rows whose curve does not need them:
    under a spectral rule every row needs the sizes of its layer.
    """
    names = [name for name in RECORDED if name in probes]
    result = pd.DataFrame(
        np.nan, index=range(len(rows)), columns=[*dict.fromkeys([*names, "r_eff"])]
    )
    spectral = rows["optimizer"].isin(of_family("spectral")).to_numpy()
    crossed = _may_cross(rows) | (spectral & (rows["step"] <= LAST_PREDICTED_STEP).to_numpy())
    here = np.flatnonzero(_may_cross(probes))
    if not names or not len(here):
        return result
    means = _means(probes, here, names, of_cell)
    step = rows["step"].to_numpy(int)
    batch, layer = rows["batch"].astype(str), rows["layer"].astype(str)
    if crossed.any():
        known = _at(means, curve[crossed], step[crossed], batch[crossed], layer[crossed])
        result.loc[crossed, names] = known.to_numpy(float)
    if "r_back" in result:
        result["r_back"] = result["r_back"].fillna(MIDDLE_BACK)
    if "r_align" in names:
        early = step <= LAST_PREDICTED_STEP
        of_step = np.where(spectral, 1, np.maximum(step, 1))  # that of step 1 is about step 0's
        result.loc[early, "r_eff"] = _directions(
            rows[early], curve[early], of_step[early], of_cell, probes, means
        )
        if "r_nuc" in names:
            of_first = _at(means, curve, of_step, TRAIN, layer)
            result["r_nuc"] = of_first["r_nuc"].where(spectral & early).to_numpy(float)
    return result


def _means(
    probes: pd.DataFrame, here: Ints, columns: Sequence[str], of_cell: "pd.Series[int]"
) -> pd.DataFrame:
    """Geometric means of ``columns`` over the cells of a curve, in the rows ``here``: a row per
    curve, step, batch and layer."""
    (cell_N, ids), (batch_N, batches), (layer_N, layers) = (
        codes(probes[name]) for name in ("cell_id", "batch", "layer")
    )
    by = [
        of_cell.reindex(ids).to_numpy()[cell_N[here]],
        probes["step"].to_numpy()[here].astype(int),
        batch_N[here].astype(int),
        layer_N[here].astype(int),
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = {name: np.log(probes[name].to_numpy()[here].astype(float)) for name in columns}
    table = pd.DataFrame(logs).groupby(by).mean().transform(np.exp)
    curve, step, batch, layer = (table.index.get_level_values(level) for level in range(4))
    named = np.array(batches, object)[batch], np.array(layers, object)[layer]
    return table.set_axis(pd.MultiIndex.from_arrays([curve, step, *named]))


def _at(means: pd.DataFrame, curve: Any, step: Any, batch: Any, layer: Any) -> pd.DataFrame:
    """The rows of ``means`` at given places; NaN where there are none."""
    return means.reindex(
        pd.MultiIndex.from_arrays(
            np.broadcast_arrays(curve, step, np.asarray(batch, object), layer)
        )
    )


def _directions(
    rows: pd.DataFrame,
    curve: Ints,
    step: Ints,
    of_cell: "pd.Series[int]",
    probes: pd.DataFrame,
    means: pd.DataFrame,
) -> Floats:
    """By row ``r_eff`` at ``step``, on the training batch, rounded so that rows repeat."""
    share = _shares(_at(means, curve, step, TRAIN, rows["layer"].astype(str)))
    wide = (rows["layer"] == MODEL_WIDE).to_numpy()
    if wide.any():
        share[wide] = _of_models(rows[wide], curve[wide], of_cell, probes, means)
    return share.round(2) ** -2


def _shares(known: pd.DataFrame) -> Floats:
    """Theory's ``share`` of each row of ``known``, from its ``r_align`` and ``r_eff``."""
    pair = known.reindex(columns=["r_align", "r_eff"]).to_numpy(float)
    distinct, where = np.unique(pair, axis=0, return_inverse=True, equal_nan=True)
    return np.array([Layer(r_align=a, r_eff=b).share for a, b in distinct])[where.ravel()]


def _of_models(
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
            if column in probes and len(here) and asked.any():
                parts = _means(probes, here, [column], of_cell)[column] ** power
                keys = [curve[asked], rows["step"].to_numpy(int)[asked]]
                keys.append(rows["batch"].astype(str)[asked])
                shares = _joined(parts, means)
                found[asked] = shares.reindex(pd.MultiIndex.from_arrays(keys)).to_numpy(float)
    return found


def _joined(weights: "pd.Series[float]", means: pd.DataFrame) -> "pd.Series[float]":
    """``|w share| / sum w`` by curve, step and batch, from ``w`` by layer."""
    curve, step, _, layer = (weights.index.get_level_values(k) for k in range(4))
    squares = (weights * _shares(_at(means, curve, np.maximum(step, 1), TRAIN, layer))) ** 2
    by = [0, 1, 2]
    root = squares.groupby(level=by).sum(min_count=1) ** 0.5
    return root / weights.where(squares.notna()).groupby(level=by).sum(min_count=1)


def _may_cross(rows: pd.DataFrame) -> Mask:
    """The rows whose finite-rank curve may have a crossover, at steps with predictions."""
    return (rows["site"].isin(PRODUCTS) & (rows["step"] <= LAST_PREDICTED_STEP)).to_numpy()
