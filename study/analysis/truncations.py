"""Does a trained adapter need its rank? Its held-out loss with delta_w cut to its k largest singular directions.

If little is lost at a k far below the rank, the rank bought a better path to a delta_w of low rank (or a larger step),
not room for one of high rank. Beside it stands the run that was trained at the lowest rank to begin with: it had the
room that the cut adapter has, and the other's path not.
"""

import numpy as np
import pandas as pd

from study.analysis.grouping import curve_labels
from study.analysis.rank_effects import mean_interval

KEPT = 0.95
"""The share of what training gained that counts as all of it."""


def truncated_losses(cells: pd.DataFrame, truncations: pd.DataFrame) -> pd.DataFrame:
    """One row per complete cell and rank kept: ``curve`` (a number), the curve's columns, ``rank``, ``seed``, ``kept``,
    ``loss`` (held out, nats per token), ``share`` (of delta_w's squared norm, the mean over layers)."""
    if truncations.empty or cells.empty:
        return pd.DataFrame()
    labels = curve_labels(cells)
    curve = labels.groupby(list(labels), dropna=False, observed=True, sort=False).ngroup()
    units = [name for name in ("seed", "data_seed") if name in cells]
    facts = labels.assign(
        cell_id=cells["cell_id"].astype(str),
        curve=curve,
        rank=cells["rank"].astype(float),
        seed=cells.groupby(units, dropna=False).ngroup(),
    )[(cells["status"] == "complete").to_numpy()]
    rows = truncations.assign(cell_id=truncations["cell_id"].astype(str))
    return facts.merge(rows, on="cell_id").drop(columns="cell_id")


def truncation_effects(losses: pd.DataFrame) -> pd.DataFrame:
    """What is left of each trained rank, one row per curve and rank, from :func:`truncated_losses`' table:

    - ``loss`` and ``gained``, nats per token: of the whole adapter, and under the base (kept = 0; NaN: not measured);
    - ``needed``: the least rank kept, of those tried, that has :data:`KEPT` of ``gained`` on the mean over seeds (NaN:
      nothing was gained);
    - ``lowest``: the curve's lowest trained rank; ``cut``: the loss with as much kept; ``beyond``: that less the loss
      of the run trained at that rank, seed by seed, with its t-interval ``ci_low``, ``ci_high`` (positive: the run of
      low rank found the better delta_w of that rank);
    - ``seeds``.
    """
    rows = []
    for _, runs in losses.groupby("curve", sort=False) if len(losses) else ():
        lowest = runs["rank"].min()
        own = runs[(runs["rank"] == lowest) & (runs["kept"] == lowest)].set_index("seed")["loss"]
        for rank in sorted(set(runs["rank"])):
            of_rank = runs[runs["rank"] == rank]
            loss_K = of_rank.groupby("kept")["loss"].mean()
            whole, base = float(loss_K[rank]), float(loss_K.get(0.0, np.nan))
            enough = (
                loss_K.index[(base - loss_K >= KEPT * (base - whole)).to_numpy()]
                if base > whole
                else []
            )
            cut = of_rank[of_rank["kept"] == lowest].set_index("seed")["loss"]
            beyond = (cut - own).dropna().to_numpy()
            mean, low, high = (
                mean_interval(beyond) if len(beyond) and rank > lowest else (np.nan,) * 3
            )
            first = of_rank.iloc[0].drop(["kept", "loss", "share", "seed"]).to_dict()
            effect = {
                "loss": whole,
                "gained": base - whole,
                "needed": enough[0] if len(enough) else np.nan,
            }
            effect |= {
                "lowest": lowest,
                "cut": float(cut.mean()),
                "beyond": mean,
                "ci_low": low,
                "ci_high": high,
            }
            rows.append(
                {str(k): v for k, v in first.items()}
                | effect
                | {"seeds": of_rank["seed"].nunique()}
            )
    return pd.DataFrame(rows)
