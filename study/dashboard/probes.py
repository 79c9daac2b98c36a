"""One cell's probed values as dense arrays of steps by layers, one quantity at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from study.store import load_cell_table
from study.vocabulary.quantities import ALIGNMENTS, MODEL_WIDE, STATS

KEYS = ("step", "layer", "block", "kind", "site", "batch")
SHOWN = tuple(stat for stat in STATS if stat not in (*ALIGNMENTS, "nonfinite"))
"""The statistics on the page. Alignments are inputs of the theory only."""


Indices = npt.NDArray[np.intp]


class Quantity(NamedTuple):
    """A statistic at a site on a batch."""

    site: str
    stat: str
    batch: str


class Layer(NamedTuple):
    """A row of the heat map. The whole model is the layer ``model`` of block -1."""

    name: str
    block: int
    kind: str


class Layers:
    """The layers found so far. The index of a layer never changes: open pages rely on it."""

    def __init__(self) -> None:
        self._index: dict[Layer, int] = {Layer(MODEL_WIDE, -1, MODEL_WIDE): 0}

    def indices(self, layers: list[Layer]) -> npt.NDArray[np.intp]:
        """The index of each layer; new layers get the next ones."""
        found = [self._index.setdefault(layer, len(self._index)) for layer in layers]
        return np.array(found, np.intp)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)


@dataclass
class CellProbes:
    """The probe rows of one cell. A statistic is read from disk when it is first needed.

    ``_rows_of``: for each (site, batch) the rows of the table, and the step and layer index of each
    row. Letters: ``S`` steps, ``N`` rows of the table.
    """

    folder: Path
    steps: npt.NDArray[np.int64]
    quantities: list[Quantity]
    _rows_of: dict[tuple[str, str], tuple[Indices, Indices, Indices]]
    _rows: int
    _stats: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, layers: Layers) -> "CellProbes":
        """The cell so far. New layers are added to ``layers``."""
        table = load_cell_table(folder, "probes", (*KEYS, *SHOWN))
        steps, step_N = np.unique(table["step"].to_numpy(), return_inverse=True)
        layer_N = _layer_indices(table, layers)
        site_N, sites = _codes(table["site"])
        batch_N, batches = _codes(table["batch"])
        rows_of, quantities = {}, []
        for site_code, site in enumerate(sites):
            for batch_code, batch in enumerate(batches):
                rows = np.flatnonzero((site_N == site_code) & (batch_N == batch_code))
                if len(rows) == 0:
                    continue
                rows_of[site, batch] = rows, step_N[rows], layer_N[rows]
                some = table.take(pa.array(rows[: len(layers)]))
                quantities += [
                    Quantity(site, stat, batch)
                    for stat in SHOWN
                    if some[stat].null_count < len(some)
                ]
        return cls(folder, steps.astype(np.int64), quantities, rows_of, len(table))

    def values(
        self, quantity: Quantity, width: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """``(values, missing)``, both ``[S, width]``: a number per step and layer, and whether it
        was not measured. ``width``: the number of layers of the study so far."""
        shape = (len(self.steps), width)
        values, missing = np.full(shape, np.nan, np.float32), np.ones(shape, np.bool_)
        if (quantity.site, quantity.batch) not in self._rows_of:
            return values, missing
        rows, step, layer = self._rows_of[quantity.site, quantity.batch]
        measured = self._column(quantity.stat)[rows]
        values[step, layer] = measured
        # Tables hold NaN also for a statistic that was not measured; `nonfinite` tells them apart.
        missing[step, layer] = np.isnan(measured) & ~(self._column("nonfinite")[rows] > 0)
        return values, missing

    def _column(self, stat: str) -> npt.NDArray[np.float32]:
        if stat not in self._stats:
            column = load_cell_table(self.folder, "probes", [stat])[stat].to_numpy()[: self._rows]
            if len(column) < self._rows:  # The cell was restarted; the next refresh finds that.
                column = np.full(self._rows, np.nan, np.float32)
            self._stats[stat] = column
        return self._stats[stat]


def _layer_indices(table: pa.Table, layers: Layers) -> Indices:
    """The layer index of each row."""
    layer_N, names = _codes(table["layer"])
    kind_N, kinds = _codes(table["kind"])
    block_N = table["block"].to_numpy()
    _, first = np.unique(layer_N, return_index=True)
    first = np.sort(first)  # np.unique sorts by name; this restores the order of the model.
    found = [Layer(names[layer_N[n]], int(block_N[n]), kinds[kind_N[n]]) for n in first]
    index = np.zeros(len(names) or 1, np.intp)
    index[layer_N[first]] = layers.indices(found)
    return index[layer_N]


def _codes(column: pa.ChunkedArray) -> tuple[Indices, list[str]]:
    """A dictionary-encoded column as integer codes and their values."""
    whole = column.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # No rows, so no chunks to combine.
        return np.empty(0, np.intp), []
    return whole.indices.to_numpy().astype(np.intp), whole.dictionary.to_pylist()
