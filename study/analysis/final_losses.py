"""Where each run ended: its held-out loss, and what its adapters cost. Learning rates and alphas are still apart here.

``cells`` that have not finished have no row; a run that diverged has one, with a loss of NaN: it bounds the learning
rates that work.
"""

import numpy as np
import pandas as pd

from study.analysis.fits import Ints
from study.analysis.grouping import curve_labels
from study.vocabulary.quantities import MODEL_WIDE

ENDED = ("complete", "diverged")
STEP_SIZE = ("lr", "alpha")
"""What sets the size of a step and is compared across, so that it never tells two settings apart here."""


def final_losses(cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """One row per finished cell of finite rank: ``setting`` (a number: all that tells cells apart but rule, rank, seed,
    learning rate and alpha), the curve's own columns, ``rank``, ``seed``, ``gamma``, ``loss`` (the last held-out loss
    after the first step, nats per token), ``parameters`` of the adapters and ``flops``, what they cost per trained
    token (factored form, ``6 R (D + O)`` a layer; both NaN where the probes do not record the layers' sizes).
    """
    ended = cells["status"].isin(ENDED) & np.isfinite(cells["rank"].to_numpy(float))
    cells = cells[ended].reset_index(drop=True)
    labels = curve_labels(cells)
    apart = [name for name in labels if name not in ("scaling", "exponent_p", *STEP_SIZE)]
    setting = (
        labels.groupby(apart, dropna=False, observed=True, sort=False).ngroup().to_numpy(np.intp)
    )
    ids = cells["cell_id"].astype(str)
    evaluated = metrics.reindex(columns=["cell_id", "step", "eval_loss"]).dropna()
    evaluated = evaluated[evaluated["step"] > 0]
    last = (
        evaluated.sort_values("step").groupby(evaluated["cell_id"].astype(str))["eval_loss"].last()
    )
    loss = ids.map(last).astype(float).where(cells["status"] != "diverged")
    fan = ids.map(fans(probes)).astype(float)
    rank = cells["rank"].to_numpy(float)
    table = labels.assign(
        cell_id=ids,
        setting=setting,
        rank=rank,
        seed=_seeds(cells),
        gamma=cells["gamma"].to_numpy(float),
        loss=loss,
        parameters=rank * fan,
        flops=6 * rank * fan,
    )
    known = np.isfinite(table["loss"]) | (cells["status"] == "diverged")
    return table[known].reset_index(drop=True)


def _seeds(cells: pd.DataFrame) -> Ints:
    """A number for each pair of seed and data seed: the unit of every interval."""
    units = [name for name in ("seed", "data_seed") if name in cells]
    return cells.groupby(units, dropna=False).ngroup().to_numpy(np.intp)


def fans(probes: pd.DataFrame) -> "pd.Series[float]":
    """Sum over a cell's layers of D + O, by cell; nothing where the sizes were not recorded.

    An adapter of rank R has R times as many parameters, and costs 6 R times as many FLOPs per trained token.
    """
    if "d_in" not in probes or probes["d_in"].isna().all():
        return pd.Series(dtype=float)
    layers = probes.loc[probes["layer"] != MODEL_WIDE, ["cell_id", "layer", "d_in", "d_out"]]
    layers = layers.drop_duplicates(["cell_id", "layer"])
    return (
        (layers["d_in"] + layers["d_out"]).groupby(layers["cell_id"].astype(str)).sum(min_count=1)
    )
