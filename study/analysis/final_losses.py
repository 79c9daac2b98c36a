"""The final held-out loss of each run, and the cost of its adapters.

Learning rates and alphas are kept apart here. Unfinished cells have no row. A diverged or
stuck run has a row with a loss of NaN: it bounds the learning rates that work.
"""

import numpy as np
import pandas as pd

from study.analysis.grouping import curve_labels, numbered, seed_numbers
from study.vocabulary.quantities import MODEL_WIDE
from study.vocabulary.statuses import BROKEN, DONE

NOT_A_SETTING = ("scaling", "exponent_p", "lr", "alpha")
"""Columns compared within a setting: the rule, and what determines the size of a step."""


def final_losses(cells: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame) -> pd.DataFrame:
    """One row per finished cell of finite rank:

    - ``setting``: a number; cells of one setting differ in rule, rank, seed, learning rate and
      alpha only;
    - the columns of the curve, ``rank``, ``seed``, ``gamma``;
    - ``loss``: the last held-out loss after the first step, in nats per token;
    - ``parameters``: the number of parameters of the adapters;
    - ``flops``: their cost per trained token (factored form, ``6 R (D + O)`` a layer). Both are NaN
      if the probes do not record the sizes of the layers.
    """
    ended = cells["status"].isin(DONE) & np.isfinite(cells["rank"].to_numpy(float))
    cells = cells[ended].reset_index(drop=True)
    labels = curve_labels(cells)
    ids = cells["cell_id"].astype(str)
    broken = cells["status"].isin(BROKEN)
    loss = ids.map(_last_loss(metrics)).astype(float).where(~broken)
    rank = cells["rank"].to_numpy(float)
    parameters = rank * ids.map(fans(probes)).astype(float)
    table = labels.assign(
        cell_id=ids,
        setting=numbered(labels, [str(name) for name in labels if name not in NOT_A_SETTING]),
        rank=rank,
        seed=seed_numbers(cells),
        gamma=cells["gamma"].to_numpy(float),
        loss=loss,
        parameters=parameters,
        flops=6 * parameters,
    )
    return table[np.isfinite(loss) | broken].reset_index(drop=True)


def _last_loss(metrics: pd.DataFrame) -> "pd.Series[float]":
    """By cell, the last held-out loss after the first step."""
    evaluated = metrics.reindex(columns=["cell_id", "step", "eval_loss"]).dropna()
    evaluated = evaluated[evaluated["step"] > 0].sort_values("step")
    return evaluated.groupby(evaluated["cell_id"].astype(str))["eval_loss"].last()


def fans(probes: pd.DataFrame) -> "pd.Series[float]":
    """By cell, the sum of D + O over its layers; empty if the sizes were not recorded.

    An adapter of rank R has R times as many parameters, and costs 6 R times as many FLOPs per
    trained token.
    """
    if "d_in" not in probes or probes["d_in"].isna().all():
        return pd.Series(dtype=float)
    layers = probes.loc[probes["layer"] != MODEL_WIDE, ["cell_id", "layer", "d_in", "d_out"]]
    layers = layers.drop_duplicates(["cell_id", "layer"])
    of_cell = (layers["d_in"] + layers["d_out"]).groupby(layers["cell_id"].astype(str))
    return of_cell.sum(min_count=1)
