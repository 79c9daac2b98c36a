"""Sums to rows of the ``probes`` table, on the host."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from study.probes.layers import AdaptedLayer
from study.probes.moments import Ledger
from study.probes.statistics import combine, statistics, with_norms
from study.vocabulary.quantities import DESCENT, MEAN_NORM, MODEL_WIDE, UNIONS

KEYS = ("step", "layer", "block", "kind", "site", "batch", "d_in", "d_out")


class Sent:
    """The measurements of a probe, on their way to the host."""

    def __init__(
        self, ledger: Ledger, frame_of: Callable[[np.ndarray, np.ndarray], pd.DataFrame]
    ) -> None:
        self._ledger, self._frame_of = ledger, frame_of

    @property
    def arrived(self) -> bool:
        """Whether they are on the host, so that :meth:`frame` returns at once."""
        return self._ledger.arrived

    def frame(self, cell: int) -> pd.DataFrame:
        """A cell's rows of the ``probes`` table, without ``cell_id``. Waits for the device."""
        sums, counts = self._read
        return self._frame_of(sums[cell], counts[cell])

    @cached_property
    def _read(self) -> tuple[np.ndarray, np.ndarray]:
        return self._ledger.read()


def frame(
    layers: Sequence[AdaptedLayer],
    sums_SLX: np.ndarray,
    counts_SL: np.ndarray,
    *,
    measured: Sequence[str],
    sites: Sequence[str],
    stats: Sequence[str],
    step: int,
    batch: str,
) -> pd.DataFrame:
    """One cell's rows: one per site and layer, and one over the whole model for unions of A and B.

    ``measured`` and ``layers`` are the first axes of ``sums_SLX`` and ``counts_SL``. ``d_in`` and
    ``d_out`` are the features of the layer; 0 in a row over the whole model.
    """
    parts = []
    sums_SLX = with_norms(sums_SLX, counts_SL)
    for site in sites:
        indices = [measured.index(part) for part in UNIONS.get(site, (site,))]
        sums_LX, counts_L = combine(sums_SLX[indices], axis=0), counts_SL[indices].sum(0)
        seen = counts_L.nonzero()[0]
        if not len(seen):
            continue
        values = _values(site, sums_LX[seen], counts_L[seen], stats)
        parts.append(pd.DataFrame(_layer_columns([layers[index] for index in seen]) | values))
        if site in UNIONS:
            sums_1X, count_1 = combine(sums_LX[seen], axis=0)[None], counts_L[seen].sum()[None]
            values = _values(site, sums_1X, count_1, stats)
            parts.append(pd.DataFrame(WHOLE_MODEL | values))
    if not parts:
        return pd.DataFrame(columns=[*KEYS, *stats])
    return pd.concat(parts, ignore_index=True).assign(step=step, batch=batch)[[*KEYS, *stats]]


WHOLE_MODEL: dict[str, Any] = {
    "layer": MODEL_WIDE,
    "block": -1,
    "kind": MODEL_WIDE,
    "d_in": 0,
    "d_out": 0,
}


def _layer_columns(layers: Sequence[AdaptedLayer]) -> dict[str, Any]:
    return {
        "layer": [layer.name for layer in layers],
        "block": [layer.block for layer in layers],
        "kind": [layer.kind for layer in layers],
        "d_in": [layer.d_in for layer in layers],
        "d_out": [layer.d_out for layer in layers],
    }


def _values(
    site: str, sums: np.ndarray, counts: np.ndarray, stats: Sequence[str]
) -> dict[str, Any]:
    values = statistics(sums, counts, stats)
    for stat, is_here in ((DESCENT.stat, site == DESCENT.site), (MEAN_NORM, site in UNIONS)):
        if stat in values and not is_here:
            values[stat] = np.full_like(values[stat], np.nan)
    return {"site": site, **values}
