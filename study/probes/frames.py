"""Sums to rows of the ``probes`` table, on the host."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from study.probes.layers import AdaptedLayer
from study.probes.moments import combine, statistics
from study.vocabulary.quantities import MEASURED, MODEL_WIDE, UNIONS

KEYS = ("step", "layer", "block", "kind", "site", "batch", "d_in", "d_out")


def frame(
    layers: Sequence[AdaptedLayer],
    sums_SLX: np.ndarray,
    counts_SL: np.ndarray,
    *,
    sites: Sequence[str],
    stats: Sequence[str],
    step: int,
    batch: str,
) -> pd.DataFrame:
    """One cell's rows: one per site and layer that was measured, and one over the whole model for unions of A and B.

    ``sums_SLX`` and ``counts_SL`` are over ``MEASURED`` sites and ``layers``. ``d_in`` and ``d_out`` are the layer's
    features, 0 in a row over the model.
    """
    parts = []
    for site in sites:
        measured = [MEASURED.index(part) for part in UNIONS.get(site, (site,))]
        sums_LX, counts_L = combine(sums_SLX[measured], axis=0), counts_SL[measured].sum(0)
        seen = counts_L.nonzero()[0]
        rows = {
            "layer": [layers[index].name for index in seen],
            "block": [layers[index].block for index in seen],
            "kind": [layers[index].kind for index in seen],
            "site": site,
            "d_in": [layers[index].d_in for index in seen],
            "d_out": [layers[index].d_out for index in seen],
        }
        parts.append(pd.DataFrame(rows | _values(site, sums_LX[seen], counts_L[seen], stats)))
        if site in UNIONS and len(seen):
            whole = {
                "layer": MODEL_WIDE,
                "block": -1,
                "kind": MODEL_WIDE,
                "site": site,
                "d_in": 0,
                "d_out": 0,
            }
            sums_1X, count_1 = combine(sums_LX[seen], axis=0)[None], counts_L[seen].sum()[None]
            parts.append(pd.DataFrame(whole | _values(site, sums_1X, count_1, stats)))
    parts = [part for part in parts if len(part)]
    if not parts:
        return pd.DataFrame(columns=[*KEYS, *stats])
    return pd.concat(parts, ignore_index=True).assign(step=step, batch=batch)[[*KEYS, *stats]]


def _values(
    site: str, sums: np.ndarray, counts: np.ndarray, stats: Sequence[str]
) -> dict[str, np.ndarray]:
    values = statistics(sums, counts, stats)
    if "descent" in values and site != "adapter_update":
        values["descent"] = np.full_like(values["descent"], np.nan)
    return values
