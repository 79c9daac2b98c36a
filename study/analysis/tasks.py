"""Task scores: held-out perplexity and exact match by rank and rule, beside the base model's.

At step 0 an adapter adds nothing under any init, so the values of step 0 are the base model's.
"""

from typing import Any

import numpy as np
import pandas as pd

from study.analysis.final_losses import best_tried, common_rates
from study.analysis.grouping import curve_labels, curve_numbers, numbered, seed_numbers
from study.analysis.intervals import mean_interval
from study.vocabulary.statuses import DONE


def task_scores(cells: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """One row per curve and rank with complete cells.

    Columns: those of the curve, ``rank``, ``seeds``, ``rates``; and for ``perplexity`` (exp of the
    mean loss per target token) and ``exact_match`` each ``base_*``, the mean over seeds after
    training, and its t-interval ``*_low``, ``*_high`` (NaN with one seed). All are NaN if the score
    was not measured. If several learning rates were tried, a rank's row is that of its best rate,
    as in the loss tables (:func:`~study.analysis.final_losses.best_tried`), and ``rates`` is the
    number of rates that all ranks and seeds were run at.
    """
    done = cells[cells["status"].isin(DONE)].reset_index(drop=True)
    if done.empty:
        return pd.DataFrame()
    complete = done["status"] == "complete"
    labels = curve_labels(done).assign(rank=done["rank"].to_numpy(float))
    ids = done["cell_id"].astype(str)
    ends = {name: _ends(metrics, name).reindex(ids) for name in ("eval_loss", "exact_match")}
    losses = ends["eval_loss"]["last"].reset_index(drop=True).where(complete)
    rates = _rates(labels.assign(seed=seed_numbers(done), loss=losses))
    shown = labels[complete & (rates > 0)]
    rows = []
    for _, group in shown.groupby(numbered(labels, ["rank"], curve_numbers(done))[shown.index]):
        loss, match = (ends[name].iloc[group.index] for name in ("eval_loss", "exact_match"))
        perplexity = {name: np.exp(value) for name, value in _scores("perplexity", loss).items()}
        scores = perplexity | _scores("exact_match", match)
        named = {str(name): value for name, value in group.iloc[0].items()}
        counts = {"seeds": len(group), "rates": rates[group.index[0]]}
        rows.append(named | counts | scores)
    table = pd.DataFrame(rows)
    return table.dropna(subset=["perplexity"]).reset_index(drop=True) if rows else table


def _rates(runs: pd.DataFrame) -> "pd.Series[int]":
    """By run, the number of rates that it is the best of; 0 if it is at another rate.

    1 if every rank and seed was run at one rate only, its own.
    """
    found = pd.Series(0, runs.index)
    others = [str(n) for n in runs if n not in ("lr", "rank", "seed", "loss")]
    for _, rule in runs.groupby(numbered(runs, others)):
        if rule.groupby(["rank", "seed"])["lr"].nunique().max() == 1:
            found[rule.index] = 1
            continue
        rates = common_rates(rule)
        for _, own in rule.groupby("rank"):
            found[own.index[own["lr"] == best_tried(own, rates).lr]] = len(rates)
    return found


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
