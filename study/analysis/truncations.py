"""Does a trained adapter need its rank? Its held-out loss with delta_w cut to rank k.

delta_w is cut to its k largest singular directions. If the loss barely rises at a k far below the
rank, then the high rank helped training (a better path, or a larger step) rather than the final
delta_w, which has a low rank. The cut adapter is compared with the run that was trained at the
lowest rank: both have a delta_w of that rank, reached by different training.
"""

from typing import Any

import numpy as np
import pandas as pd

from study.analysis.grouping import curve_labels, curve_numbers, seed_numbers
from study.analysis.intervals import mean_interval

KEPT = 0.95
"""A cut adapter is enough if it keeps this share of the loss reduction of training."""


def truncated_losses(cells: pd.DataFrame, truncations: pd.DataFrame) -> pd.DataFrame:
    """One row per complete cell and rank kept.

    Columns: ``curve`` (a number), the columns of the curve, ``rank``, ``seed``, ``kept``, ``loss``
    (held out, nats per token), ``share`` (of the squared norm of delta_w, mean over layers).
    """
    if truncations.empty or cells.empty:
        return pd.DataFrame()
    facts = curve_labels(cells).assign(
        cell_id=cells["cell_id"].astype(str),
        curve=curve_numbers(cells),
        rank=cells["rank"].astype(float),
        seed=seed_numbers(cells),
    )[(cells["status"] == "complete").to_numpy()]
    rows = truncations.assign(cell_id=truncations["cell_id"].astype(str))
    return facts.merge(rows, on="cell_id").drop(columns="cell_id")


def truncation_effects(losses: pd.DataFrame) -> pd.DataFrame:
    """The effect of cutting each trained rank, one row per curve and rank of ``losses``.

    ``losses`` is the table of :func:`truncated_losses`. Columns beside those of the curve:

    - ``loss``, ``gained``: the loss of the whole adapter, and how far it is below that of the base
      model (kept = 0), in nats per token; NaN if not measured;
    - ``needed``: the lowest rank kept, of those tried, that keeps :data:`KEPT` of ``gained`` in the
      mean over seeds; NaN if nothing was gained;
    - ``lowest``: the lowest trained rank of the curve. ``cut``: the loss cut to that rank;
    - ``beyond``: ``cut`` minus the loss of the run trained at that rank, seed by seed, with its
      t-interval ``ci_low``, ``ci_high``. Positive: the run of low rank found the better delta_w of
      that rank;
    - ``seeds``.
    """
    rows = []
    for _, runs in losses.groupby("curve", sort=False) if len(losses) else ():
        lowest = runs["rank"].min()
        at_lowest = runs[(runs["rank"] == lowest) & (runs["kept"] == lowest)]
        own = at_lowest.set_index("seed")["loss"]
        rows += [_effect(of_rank, lowest, own) for _, of_rank in runs.groupby("rank")]
    return pd.DataFrame(rows)


def _effect(of_rank: pd.DataFrame, lowest: float, own: "pd.Series[float]") -> dict[str, Any]:
    """The row of one rank. ``own``: by seed, the loss of the run trained at the lowest rank."""
    rank = of_rank["rank"].iloc[0]
    loss_K = of_rank.groupby("kept")["loss"].mean()
    whole, base = float(loss_K[rank]), float(loss_K.get(0.0, np.nan))
    enough = loss_K.index[(base > whole) & (base - loss_K >= KEPT * (base - whole))]
    cut = of_rank[of_rank["kept"] == lowest].set_index("seed")["loss"]
    beyond, low, high = mean_interval((cut - own).dropna() if rank > lowest else [])
    labels = of_rank.iloc[0].drop(["kept", "loss", "share", "seed"]).to_dict()
    return {
        **{str(name): value for name, value in labels.items()},
        "loss": whole,
        "gained": base - whole,
        "needed": enough[0] if len(enough) else np.nan,
        "lowest": lowest,
        "cut": float(cut.mean()),
        "beyond": beyond,
        "ci_low": low,
        "ci_high": high,
        "seeds": of_rank["seed"].nunique(),
    }
