"""One cell's probed values as dense arrays, steps by layers, a quantity at a time and only when asked for."""

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
"""What the page offers: what a layer's probe measured of it, rather than what theory needs to know of the layer."""


class Quantity(NamedTuple):
    """What a chart shows: where, what, and on which batch."""

    site: str
    stat: str
    batch: str


class Layer(NamedTuple):
    """A row of the heat map; the model as a whole is the layer ``model`` of block -1."""

    name: str
    block: int
    kind: str


class Layers:
    """Every layer met so far. A layer keeps its place for good, so that what a page has received stays true."""

    def __init__(self) -> None:
        self.place: dict[Layer, int] = {Layer(MODEL_WIDE, -1, MODEL_WIDE): 0}

    def places(self, layers: list[Layer]) -> npt.NDArray[np.intp]:
        return np.array(
            [self.place.setdefault(layer, len(self.place)) for layer in layers], np.intp
        )

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.place)

    def __len__(self) -> int:
        return len(self.place)


@dataclass
class CellProbes:
    """The probe rows of one cell: where each belongs, and the stats that were asked for.

    ``S`` steps, ``L`` layers, ``N`` rows. Values are read from disk once each, on demand.
    """

    folder: Path
    steps: npt.NDArray[np.int64]
    quantities: list[Quantity]
    _places: dict[
        tuple[str, str], tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.intp]]
    ]
    _rows: int
    _stats: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, layers: Layers) -> "CellProbes":
        """The cell as far as it got; layers that are new are given a place in ``layers``."""
        table = load_cell_table(folder, "probes", (*KEYS, *SHOWN))
        steps, step_N = np.unique(table["step"].to_numpy(), return_inverse=True)
        layer_N = _layer_places(table, layers)
        site_N, sites = _codes(table["site"])
        batch_N, batches = _codes(table["batch"])
        places, quantities = {}, []
        for site_code, site in enumerate(sites):
            for batch_code, batch in enumerate(batches):
                rows = np.flatnonzero((site_N == site_code) & (batch_N == batch_code))
                if len(rows) == 0:
                    continue
                places[site, batch] = rows, step_N[rows], layer_N[rows]
                some = table.take(pa.array(rows[: len(layers)]))
                quantities += [
                    Quantity(site, stat, batch)
                    for stat in SHOWN
                    if some[stat].null_count < len(some)
                ]
        return cls(folder, steps.astype(np.int64), quantities, places, len(table))

    def values(
        self, quantity: Quantity, width: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """``(values, missing)``, both ``[S, width]``: a number per step and layer, and where none was measured."""
        shape = (len(self.steps), width)
        values, missing = np.full(shape, np.nan, np.float32), np.ones(shape, np.bool_)
        if (quantity.site, quantity.batch) not in self._places:
            return values, missing
        rows, step, layer = self._places[quantity.site, quantity.batch]
        measured = self._column(quantity.stat)[rows]
        values[step, layer] = measured
        # The tables write NaN for "this stat does not exist here"; where something failed, `nonfinite` is 1.
        missing[step, layer] = np.isnan(measured) & ~(self._column("nonfinite")[rows] > 0)
        return values, missing

    def _column(self, stat: str) -> npt.NDArray[np.float32]:
        if stat not in self._stats:
            column = load_cell_table(self.folder, "probes", [stat])[stat].to_numpy()[: self._rows]
            if (
                len(column) < self._rows
            ):  # the cell was started again since: the next look will say so
                column = np.full(self._rows, np.nan, np.float32)
            self._stats[stat] = column
        return self._stats[stat]


def _layer_places(table: pa.Table, layers: Layers) -> npt.NDArray[np.intp]:
    """Each row's place among ``layers``."""
    layer_N, names = _codes(table["layer"])
    kind_N, kinds = _codes(table["kind"])
    block_N = table["block"].to_numpy()
    _, first = np.unique(layer_N, return_index=True)
    first = np.sort(first)  # layers in the order of the model, not of their names
    found = [Layer(names[layer_N[n]], int(block_N[n]), kinds[kind_N[n]]) for n in first]
    place = np.zeros(len(names) or 1, np.intp)
    place[layer_N[first]] = layers.places(found)
    return place[layer_N]


def _codes(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.intp], list[str]]:
    """A dictionary-encoded column as integers and what they stand for."""
    whole = column.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # no rows: no chunks to combine
        return np.empty(0, np.intp), []
    return whole.indices.to_numpy().astype(np.intp), whole.dictionary.to_pylist()
