"""The distance of runs of finite rank from the run of infinite rank: measures, table and fits.

:mod:`study.sweeps.distances` makes the runs. Measured with the weights after s updates, with
E = delta_w minus its limit, per layer:

- ``input_weighted``: sqrt(E|E x|^2 / E|limit x|^2), x the inputs of the limit at step s. It matters
  for the model, because the inputs of a layer occupy few directions;
- ``frobenius``: |E| / |limit|;
- ``loss``: the absolute difference of the losses on the batch of step s, over the whole model.

The first two have a closed form after one step (:func:`study.theory.distance_to_infinite_rank`).
The law r^-1/2 holds under SGD for a few lazy steps; later the motion of A, of order 1/r a step,
bends it. Under sign-like rules with eps -> 0 it holds at every step. An eps above 0 adds a
difference from the limit that grows as eps r.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from study.analysis.exponents import fit_exponents
from study.analysis.fits import Floats
from study.analysis.wording import interval_text
from study.vocabulary.quantities import ALL_KINDS, LOSS, MEAN_LOG, MODEL_WIDE, TRAIN

FACTS = (
    *("study", "model", "data", "optimizer", "lr", "eps", "alpha", "init", "scaling"),
    *("exponent", "rank", "seed"),
)
"""The columns that describe a run, named as in the ``cells`` table."""


@dataclass(frozen=True)
class RunState:
    """A run after ``step`` updates, with the loss on its batch. By layer: ``deltas``, delta_w as
    ``[O, D]``; and ``moments``, second moments of the inputs as ``[D, D]`` if asked for."""

    step: int
    loss: float
    deltas: dict[str, npt.NDArray[np.float32]]
    moments: dict[str, Floats]


def compare(limit: RunState, run: RunState, variances: float = 0.0) -> pd.DataFrame:
    """The rows of one run at one step.

    ``variances``: the variance of the limit over that of the run. It is 0 for an exact limit. For a
    run of rank r against one of a large rank R with another A, it is r / R. Their squared distance
    is ``1 + r / R`` times that from the exact limit, so distances are divided by its root.

    What theory needs of the limit's layer is NaN if the limit has not moved.
    """
    place = {"layer": MODEL_WIDE, "kind": MODEL_WIDE}
    rows: list[dict[str, Any]] = [
        {**place, "measure": LOSS, "distance": abs(run.loss - limit.loss)}
    ]
    for layer, delta_OD in limit.deltas.items():
        M_DD, limit_OD = limit.moments[layer], delta_OD.astype(np.float64)
        error = run.deltas[layer].astype(np.float64) - limit_OD
        energy, out_energy = float(np.square(limit_OD).sum()), _weighted(limit_OD, M_DD)
        # After one step, the rows of the limit are parallel to those of the weight gradient G,
        # under SGD and under sign-like rules: r_sign is (pi/2) / mean cos^2(G_o, x).
        norms = np.square(limit_OD).sum(axis=1)
        live = norms > 0
        cos2 = ((limit_OD @ M_DD) * limit_OD).sum(axis=1)[live] / norms[live]
        facts = {
            "layer": layer,
            "kind": layer.rpartition(".")[2],
            "d_in": limit_OD.shape[1],
            "d_out": limit_OD.shape[0],
            "r_align": _ratio(energy * float(np.trace(M_DD)), out_energy),
            "r_diag": _ratio(float(np.square(limit_OD).sum(0) @ M_DD.diagonal()), out_energy),
            "r_sign": _ratio(math.pi / 2 * float(np.trace(M_DD)) * live.sum(), float(cos2.sum())),
        }
        squares = {
            "input_weighted": _ratio(_weighted(error, M_DD), out_energy),
            "frobenius": _ratio(float(np.square(error).sum()), energy),
        }
        rows += [
            {**facts, "measure": measure, "distance": math.sqrt(square)}
            for measure, square in squares.items()
        ]
    table = pd.DataFrame(rows).assign(step=limit.step)
    return table.assign(distance=table["distance"] / math.sqrt(1 + variances))


def _weighted(delta_OD: Floats, M_DD: Floats) -> float:
    """``E|delta x|^2``."""
    return max(0.0, float(((delta_OD @ M_DD) * delta_OD).sum()))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


def exponents_of(cells: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """The fits of :func:`study.analysis.fit_exponents` of the distance in those of ``cells`` that
    have one; ``site`` is the measure. Empty without distances."""
    if distances.empty:
        return pd.DataFrame()
    measured = cells["cell_id"].astype(str).isin(set(distances["cell_id"].astype(str)))
    probes = distances[["cell_id", "step", "layer", "kind", "distance"]].assign(
        site=distances["measure"],
        batch=TRAIN,
        block=np.where(distances["layer"] == MODEL_WIDE, -1, 0),
    )
    return fit_exponents(cells[measured], probes, stats=["distance"])


def laws(distances: pd.DataFrame) -> list[str]:
    """A line per measure and step: the exponent, of layers that of the mean of the log."""
    facts = distances[["cell_id", *(name for name in FACTS if name in distances)]]
    runs = facts.drop_duplicates("cell_id").assign(status="complete").reset_index(drop=True)
    fits = exponents_of(runs, distances)
    pooled = (fits["layer"] == MEAN_LOG) & (fits["kind"] == ALL_KINDS)
    fits = fits[pooled | (fits["site"] == LOSS)].sort_values(["site", "step"])
    return [
        f"{row['site']}, step {row['step']}: "
        f"exponent {interval_text(row['exponent'], row['ci_low'], row['ci_high'], places=3)}, "
        f"ranks {row['rank_min']:.0f} to {row['rank_max']:.0f}"
        for row in fits.to_dict("records")
    ]
