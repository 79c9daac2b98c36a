"""Held-out loss at the highest rank minus that at the lowest, at one learning rate."""

import numpy as np
import pandas as pd

from study.analysis.grouping import curve_labels, numbered, seed_numbers
from study.analysis.intervals import mean_interval
from study.vocabulary.statuses import DONE


def loss_gaps(cells: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """The gap between the highest and the lowest finite rank, a row per curve and evaluated step.

    Columns: those of the curve, ``step``, ``gap`` in nats per token (negative if the higher rank
    learned more), its t-interval over seeds ``ci_low``, ``ci_high`` (NaN with one seed), ``seeds``,
    ``rank_min``, ``rank_max``. Only finished cells count, and only seeds that were evaluated at
    both ranks. A run that diverged before the step has no loss there.
    """
    finished = cells["status"].isin(DONE) & np.isfinite(cells["rank"].to_numpy(float))
    cells = cells[finished].reset_index(drop=True)
    if cells.empty or "eval_loss" not in metrics:
        return pd.DataFrame()
    labels = curve_labels(cells)
    ends = labels.assign(
        cell_id=cells["cell_id"].astype(str),
        curve=numbered(labels, labels.columns),
        rank=cells["rank"].to_numpy(float),
        seed=seed_numbers(cells),
    )
    ranks = ends.groupby("curve")["rank"].agg(["min", "max"])
    ends = ends.join(ranks, on="curve")
    ends = ends[(ends["rank"] == ends["min"]) | (ends["rank"] == ends["max"])]
    losses = metrics[["cell_id", "step", "eval_loss"]].assign(
        cell_id=metrics["cell_id"].astype(str)
    )
    losses = losses[np.isfinite(losses["eval_loss"])].merge(ends, on="cell_id")
    rows = []
    for (curve, step), here in losses.groupby(["curve", "step"]):
        by = here.pivot(index="seed", columns="rank", values="eval_loss").dropna()
        low, high = ranks.loc[curve, "min"], ranks.loc[curve, "max"]
        if low == high or not {low, high} <= set(by.columns) or by.empty:
            continue
        gap, ci_low, ci_high = mean_interval(by[high] - by[low])
        rows.append(
            here.iloc[0][list(labels.columns)].to_dict()
            | {"step": int(step), "gap": gap, "ci_low": ci_low, "ci_high": ci_high}
            | {"seeds": len(by), "rank_min": low, "rank_max": high}
        )
    return pd.DataFrame(rows)
