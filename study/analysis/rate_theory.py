"""Theory's interval for the exponent of the best learning rate with rank (docs/theory.md).

By either of two theories, the best rate keeps a quantity the same at every rank. Near the init,
with steps of size ``lr``, it is

- the *descent*, the decrease of the loss in a step to first order: ``lr gamma r`` under sign-like
  rules, ``lr gamma^2 r`` under linear ones. Its slope is m = 1 - p, or 1 - 2p, at all ranks;
- the *output*, the change of the adapter's output in a step: ``lr`` times the curve of
  ``adapter_out``, such as ``gamma sqrt(r (r - 1 + r_sign))``, which bends at low rank. m is its
  slope over the ranks measured.

Studies support either (docs/best-rates.md), so the prediction is the interval between the two. The
exponent is -m while A hardly moves, and -m/2 once it has moved far (:func:`rate_exponent`).
"""

import math
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from study.analysis.grouping import gammas, local_p
from study.analysis.predictions import mean_layers
from study.theory import Layer, curve, family, power_of_gamma, slope
from study.vocabulary.inits import INITS
from study.vocabulary.optimizers import OPTIMIZERS
from study.vocabulary.quantities import FORWARD_OUT
from study.vocabulary.thresholds import LAST_PREDICTED_STEP

Numbers = TypeVar("Numbers", float, npt.NDArray[np.float64])

K = math.sqrt(math.pi / 2)
"""The motion of the output through ``dA``, in units of that through ``A0``, at rho = 1."""
OUTPUT = "log_output"
"""The column of ``rates`` with the log of the output that a step of size 1 moves."""
LARGE = 1e9
"""The number of features D, if it is unknown."""


def rate_exponent(m: float, rho: Numbers) -> Numbers:
    """``d log lr / d log r`` of the best rate at ``rho``. ``m``: see the module.

    >>> rate_exponent(0.86, 0.0), round(rate_exponent(0.86, 1e9), 3)
    (-0.86, -0.43)
    """
    return -m * (1 + K * rho) / (1 + 2 * K * rho)


def log_outputs(runs: pd.DataFrame, probes: pd.DataFrame) -> pd.Series:
    """:data:`OUTPUT` at each rank of the runs of one rule, up to a constant; without alignments for
    r_align = D."""
    ranks = np.unique(runs["rank"].to_numpy(float))
    first = runs.iloc[0]
    optimizer, init = str(first["optimizer"]), INITS.get(str(first["init"]))
    found = np.full(len(ranks), math.nan)
    # The law holds if A is drawn, with a variance independent of rank.
    if init is not None and init.drawn == "A" and init.q == 0 and optimizer in OPTIMIZERS:
        law: dict[str, Any] = {"step": 1, "optimizer": optimizer}
        place, layers = (FORWARD_OUT.site, "rms"), _layers(runs, probes, optimizer, init.kurtosis)
        curves = [curve(*place, ranks, **law, p=0.0, layer=layer) for layer in layers]
        powers = power_of_gamma(*place, **law) * np.log(gammas(first, ranks))
        found = np.mean(np.log(curves), axis=0) + powers
    return pd.Series(found, ranks, name=OUTPUT)


def _layers(
    runs: pd.DataFrame, probes: pd.DataFrame, optimizer: str, kurtosis: float
) -> list[Layer]:
    """The layers with their alignments: geometric means over the runs at the first step that has
    them. They do not depend on rank or rate there."""
    name = "r_sign" if family(optimizer) == "sign" else "r_align"
    mine = probes[probes["cell_id"].astype(str).isin(set(runs["cell_id"].astype(str)))]
    fans = mine["d_in"].dropna() if "d_in" in mine else pd.Series(dtype=float)
    D = float(fans.max()) if len(fans) and fans.max() > 0 else LARGE
    rows = pd.DataFrame()
    if name in mine:
        there = (mine["site"] == FORWARD_OUT.site) & (mine[name] > 0) & np.isfinite(mine[name])
        rows = mine[there & mine["step"].between(1, LAST_PREDICTED_STEP)]
    if rows.empty:
        unrelated = D * (math.pi / 2 if name == "r_sign" else 1)
        return [Layer(d_in=D, kurtosis=kurtosis, **{name: unrelated})]
    rows = rows[rows["step"] == rows["step"].min()]
    found = mean_layers(rows, ("d_in", name), kurtosis)
    return [one if one.d_in > 0 else replace(one, d_in=LARGE) for one in found]


def slopes(outputs: pd.Series, rule: Any) -> tuple[float, float]:
    """m by the descent, and by the output over the ranks of ``outputs``; NaN without a
    prediction."""
    if len(outputs) < 2 or outputs.isna().any():
        return math.nan, math.nan
    ranks = outputs.index.to_numpy(float)
    law: dict[str, Any] = {"optimizer": rule["optimizer"], "p": local_p(rule, ranks)}
    descent = curve("adapter_update", "descent", ranks, step=0, **law)
    # The log is known up to a constant; centred, its exponential is near 1.
    return slope(descent, ranks), slope(np.exp(outputs - outputs.mean()), ranks)


def predicted_interval(outputs: pd.Series, rule: Any) -> tuple[float, float]:
    """The interval predicted for the exponent of the best rate at any rho; NaN as
    :func:`slopes`."""
    falls, optimizer = [-m for m in slopes(outputs, rule)], str(rule["optimizer"])
    if optimizer in OPTIMIZERS and family(optimizer) == "sign":
        falls += [fall / 2 for fall in falls]
    return min(falls), max(falls)
