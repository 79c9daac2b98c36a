"""Did the task improve? Held-out perplexity and exact match of every rank and rule, beside the base model's own.

At step 0 an adapter adds nothing, whatever its init: what is measured there is the base model.
"""

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd

from study.analysis.fits import Floats, t_critical
from study.analysis.grouping import curve_labels


def task_scores(cells: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """One row per curve and rank with complete cells: the curve's columns, ``rank``, ``seeds``, and for ``perplexity``
    (exp of the mean loss per target token) and ``exact_match`` each ``base_*``, the mean over seeds after training, and
    its t-interval ``*_low``, ``*_high`` (NaN with one seed); all NaN where it was not measured. Where several learning
    rates were tried, the one of the lowest perplexity stands for a rank, and ``rates`` says how many there were.
    """
    done = cells[cells["status"] == "complete"].reset_index(drop=True)
    if done.empty:
        return pd.DataFrame()
    labels = curve_labels(done)
    ids = done["cell_id"].astype(str)
    ends = {name: _ends(metrics, name).reindex(ids) for name in ("eval_loss", "exact_match")}
    rows = []
    by = labels.assign(rank=done["rank"].to_numpy(float))
    for _, group in by.groupby(list(by), dropna=False, observed=True, sort=False):
        at = group.index.to_numpy()
        loss, match = (ends[name].iloc[at] for name in ("eval_loss", "exact_match"))
        rows.append(
            group.iloc[0].to_dict()
            | {"seeds": len(group)}
            | {name: float(np.exp(value)) for name, value in _scores("perplexity", loss).items()}
            | _scores("exact_match", match)
        )
    table = pd.DataFrame(rows).dropna(subset=["perplexity"])
    return _at_best_rate(table, [str(name) for name in by if name != "lr"]).reset_index(drop=True)


def _ends(metrics: pd.DataFrame, name: str) -> pd.DataFrame:
    """``first`` and ``last`` value of a metric by cell: at step 0, and at the last later step that has one."""
    measured = metrics.reindex(columns=["cell_id", "step", name]).dropna().sort_values("step")
    measured["cell_id"] = measured["cell_id"].astype(str)
    first = measured[measured["step"] == 0].set_index("cell_id")[name]
    last = measured[measured["step"] > 0].groupby("cell_id")[name].last()
    return pd.DataFrame({"first": first, "last": last}, dtype=float)


def _scores(name: str, ends: pd.DataFrame) -> dict[Hashable, Any]:
    last: Floats = ends["last"].to_numpy(float)
    mean = float(last.mean())
    half = (
        float(t_critical(len(last) - 1) * last.std(ddof=1) / np.sqrt(len(last)))
        if len(last) > 1
        else np.nan
    )
    return {
        f"base_{name}": ends["first"].mean(),
        name: mean,
        f"{name}_low": mean - half,
        f"{name}_high": mean + half,
    }


def _at_best_rate(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    if table.empty:
        return table
    groups = table.groupby(by, dropna=False, observed=True, sort=False)
    best = table.loc[groups["perplexity"].idxmin()]
    return best.assign(rates=groups["lr"].nunique().to_numpy())
