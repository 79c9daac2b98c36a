"""Task scores: held-out perplexity and exact match by rank and rule, beside the base model's.

At step 0 an adapter adds nothing under any init, so the values of step 0 are the base model's.
"""

from typing import Any

import numpy as np
import pandas as pd

from study.analysis.grouping import curve_labels, curve_numbers, numbered
from study.analysis.intervals import mean_interval


def task_scores(cells: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """One row per curve and rank with complete cells.

    Columns: those of the curve, ``rank``, ``seeds``, ``rates``; and for ``perplexity`` (exp of the
    mean loss per target token) and ``exact_match`` each ``base_*``, the mean over seeds after
    training, and its t-interval ``*_low``, ``*_high`` (NaN with one seed). All are NaN if the score
    was not measured. If several learning rates were tried, a rank's row is that of the rate with
    the lowest perplexity, and ``rates`` is the number of rates.
    """
    done = cells[cells["status"] == "complete"].reset_index(drop=True)
    if done.empty:
        return pd.DataFrame()
    labels = curve_labels(done).assign(rank=done["rank"].to_numpy(float))
    ids = done["cell_id"].astype(str)
    ends = {name: _ends(metrics, name).reindex(ids) for name in ("eval_loss", "exact_match")}
    rows = []
    for _, group in labels.groupby(numbered(labels, ["rank"], curve_numbers(done))):
        loss, match = (ends[name].iloc[group.index] for name in ("eval_loss", "exact_match"))
        perplexity = {name: np.exp(value) for name, value in _scores("perplexity", loss).items()}
        scores = perplexity | _scores("exact_match", match)
        named = {str(name): value for name, value in group.iloc[0].items()}
        rows.append(named | {"seeds": len(group)} | scores)
    table = pd.DataFrame(rows).dropna(subset=["perplexity"])
    return _at_best_rate(table, [str(name) for name in labels if name != "lr"]).reset_index(
        drop=True
    )


def _ends(metrics: pd.DataFrame, name: str) -> pd.DataFrame:
    """By cell the ``first`` value of a metric, at step 0, and the ``last``, at a later step."""
    measured = metrics.reindex(columns=["cell_id", "step", name]).dropna().sort_values("step")
    measured["cell_id"] = measured["cell_id"].astype(str)
    first = measured[measured["step"] == 0].set_index("cell_id")[name]
    last = measured[measured["step"] > 0].groupby("cell_id")[name].last()
    return pd.DataFrame({"first": first, "last": last}, dtype=float)


def _scores(name: str, ends: pd.DataFrame) -> dict[str, Any]:
    """The base model's score, the mean over seeds after training, and its interval."""
    mean, low, high = mean_interval(ends["last"])
    return {
        f"base_{name}": ends["first"].mean(),
        name: mean,
        f"{name}_low": low,
        f"{name}_high": high,
    }


def _at_best_rate(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Of the rows that differ in ``lr`` only, the one with the lowest perplexity."""
    if table.empty:
        return table
    group = numbered(table, by)
    best = table.loc[table["perplexity"].groupby(group).idxmin()]
    return best.assign(rates=table["lr"].groupby(group).nunique().to_numpy())
