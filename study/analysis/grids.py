"""Probe rows as dense arrays: one site at a time, frames (a cell at a step on a batch) by layers.

Statistics are whole columns, so all further work is array operations along an axis. Values are
never duplicated: a study can have 20 million.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from study.analysis.fits import Floats, Ints, Strands
from study.analysis.grouping import Design, codes
from study.analysis.pooling import pool
from study.errors import StudyError
from study.vocabulary.quantities import ALL_KINDS, MODEL_WIDE, POOLINGS


@dataclass(frozen=True)
class Grid:
    """The usable probe rows ``N`` of one site, and the columns ``C`` that are fitted to them.

    The columns are the ``L`` layers and then the poolings of each of ``pools`` (the indices of the
    layers of a pool). The last pool is over all kinds. ``place_N`` is the place of a row in the
    flattened ``[F, L]``. A group ``G`` is a curve at a step on a batch.
    """

    site: str
    row_N: Ints
    place_N: Ints
    rank_F: Floats
    strands: Strands
    curve_G: Ints
    batch_G: Ints
    step_G: Ints
    kind_C: list[str]
    layer_C: list[str]
    block_C: Ints
    pools: list[Ints]

    def logs(self, values: npt.NDArray[np.floating]) -> Floats:
        """The natural logarithm of a statistic's column of ``probes``, ``[F, L]`` in float64.

        NaN for values that are not positive or not finite.
        """
        value_N = values[self.row_N].astype(np.float64)
        value_N[~(np.isfinite(value_N) & (value_N > 0))] = np.nan
        layers = len(self.layer_C) - len(POOLINGS) * len(self.pools)
        y = np.full(len(self.rank_F) * layers, np.nan)
        y[self.place_N] = np.log(value_N, out=value_N)
        return y.reshape(-1, layers)

    def with_pools(self, y_FL: Floats) -> tuple[Floats, Ints]:
        """``y_FL`` with the columns of the pools appended, and the number of layers of each entry.

        Both are ``[F, C]``.
        """
        pooled = [pool(y_FL[:, members], self.strands) for members in self.pools]
        columns = [column for mean, median, _ in pooled for column in (mean, median)]
        counts = [count for *_, count in pooled for _ in POOLINGS]
        return np.column_stack([y_FL, *columns]), np.column_stack(
            [np.ones(y_FL.shape, np.intp), *counts]
        )


def grids(design: Design, probes: pd.DataFrame) -> Iterator[Grid]:
    """The rows of ``probes`` that ``design`` can use, site by site. Omits sites without any."""
    site_N, sites = codes(probes["site"])
    cell_id_N, ids = codes(probes["cell_id"])
    place = {cell_id: k for k, cell_id in enumerate(design.cell_id_K)}
    cell_N = np.array([place.get(cell_id, -1) for cell_id in ids], np.int32)[cell_id_N]
    end_N = np.append(design.end_K, 0.0)[cell_N]  # a cell outside the design has -1: ends at 0
    usable_N = probes["step"].to_numpy() < end_N
    columns = {name: codes(probes[name]) for name in ("batch", "layer", "kind")}
    for code, site in enumerate(sites):
        row = np.flatnonzero((site_N == code) & usable_N)
        if len(row):
            yield _grid(design, probes, site, row, cell_N[row], columns)


def _grid(
    design: Design,
    probes: pd.DataFrame,
    site: str,
    row: Ints,
    cell: Ints,
    columns: dict[str, tuple[Ints, list[str]]],
) -> Grid:
    (batch_N, batches), (layer_N, layers), (kind_N, kinds) = (
        columns[name] for name in ("batch", "layer", "kind")
    )
    step, batch = probes["step"].to_numpy()[row].astype(np.int64), batch_N[row]
    # One number per frame that sorts by curve, batch and step. Cells are sorted, so frames of a
    # group are sorted by seed and rank.
    group = (design.curve_K[cell] * len(batches) + batch) * (step.max() + 1) + step
    _, first, frame = np.unique(
        group * len(design.cell_id_K) + cell, return_index=True, return_inverse=True
    )
    layer_L, layer = np.unique(layer_N[row], return_inverse=True)
    place = frame * len(layer_L) + layer
    if np.bincount(place).max() > 1:
        twice = probes.iloc[row[np.flatnonzero(pd.Series(place).duplicated())[0]]]
        raise StudyError(
            f"probes has {twice['site']} of {twice['layer']} twice at step {twice['step']} "
            f"of cell {twice['cell_id']}: delete the cell and train it again"
        )

    kind_L, block_L = np.empty(len(layer_L), np.intp), np.empty(len(layer_L), np.intp)
    kind_L[layer], block_L[layer] = kind_N[row], probes["block"].to_numpy()[row]
    names = [layers[k] for k in layer_L]
    projections = np.flatnonzero([name != MODEL_WIDE for name in names])
    pools = {
        kinds[k]: projections[kind_L[projections] == k] for k in np.unique(kind_L[projections])
    }
    if len(projections):
        pools[ALL_KINDS] = projections
    strands = Strands.of(group[first], design.seed_K[cell[first]])
    lead = first[strands.start_G]  # all rows of a group have the same curve, batch and step
    return Grid(
        site=site,
        row_N=row,
        place_N=place,
        rank_F=design.rank_K[cell[first]],
        strands=strands,
        curve_G=design.curve_K[cell[lead]],
        batch_G=batch[lead],
        step_G=step[lead],
        kind_C=[*(kinds[k] for k in kind_L), *(kind for kind in pools for _ in POOLINGS)],
        layer_C=[*names, *(pooling for _ in pools for pooling in POOLINGS)],
        block_C=np.append(block_L, np.full(len(pools) * len(POOLINGS), -1)),
        pools=list(pools.values()),
    )
