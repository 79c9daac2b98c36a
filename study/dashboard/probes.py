"""Cells' probed values as dense arrays of steps by layers, one quantity at a time."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from study.store import load_cell_table
from study.vocabulary.quantities import ALIGNMENTS, MODEL_WIDE, STATS

KEYS = ("step", "layer", "block", "kind", "site", "batch")
SHOWN = tuple(stat for stat in STATS if stat not in (*ALIGNMENTS, "nonfinite"))
"""The statistics on the page. Alignments are inputs of the theory only."""
KEPT_ROWS = 2000
"""Tables of at most so many rows stay in memory, 0.2 MB each. Otherwise a page on thousands of
cells would read each of their files again for every statistic."""


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


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the rows of a probe table belong. The cells of a sweep share a few layouts.

    - ``steps``: those measured, ascending;
    - ``rows``: how many the table has;
    - ``places``: for each (site, batch) its rows, and the step and layer index of each of them.
    """

    steps: npt.NDArray[np.int64]
    rows: int
    places: dict[tuple[str, str], tuple[Indices, Indices, Indices]]

    def measured(self, table: pa.Table, layers: int) -> list[Quantity]:
        """The quantities that ``table`` has, judged by as many rows of each place as there are
        layers."""
        if not self.places:
            return []
        first = [rows[:layers] for rows, *_ in self.places.values()]
        starts = np.cumsum([0, *map(len, first[:-1])])
        there = np.array([table[stat].is_valid().to_numpy() for stat in SHOWN])
        any_TP = np.logical_or.reduceat(there[:, np.concatenate(first)], starts, axis=1)
        return [
            Quantity(site, stat, batch)
            for (site, batch), any_T in zip(self.places, any_TP.T, strict=True)
            for stat, any_here in zip(SHOWN, any_T, strict=True)
            if any_here
        ]


class Layers:
    """The layers and the layouts found so far.

    The index of a layer never changes: open pages rely on it.
    """

    def __init__(self) -> None:
        self._index: dict[Layer, int] = {Layer(MODEL_WIDE, -1, MODEL_WIDE): 0}
        self._layouts: WeakValueDictionary[bytes, Layout] = WeakValueDictionary()

    def indices(self, layers: list[Layer]) -> npt.NDArray[np.intp]:
        """The index of each layer; new layers get the next ones."""
        found = [self._index.setdefault(layer, len(self._index)) for layer in layers]
        return np.array(found, np.intp)

    def layout(self, table: pa.Table) -> Layout:
        """The layout of a probe table, the same object for equal ones. Its layers are added."""
        keys = {name: _codes(table[name]) for name in KEYS}
        made_from = hashlib.sha256(repr([names for _, names in keys.values()]).encode())
        for codes, _ in keys.values():
            made_from.update(codes.tobytes())
        found = self._layouts.get(made_from.digest())
        if found is None:
            found = self._layouts[made_from.digest()] = self._new_layout(keys)
        return found

    def _new_layout(self, keys: Mapping[str, tuple[Indices, list[str]]]) -> Layout:
        steps, step_N = np.unique(keys["step"][0], return_inverse=True)
        layer_N = self._layer_indices(keys)
        (site_N, sites), (batch_N, batches) = keys["site"], keys["batch"]
        places = {}
        for site_code, site in enumerate(sites):
            for batch_code, batch in enumerate(batches):
                rows = np.flatnonzero((site_N == site_code) & (batch_N == batch_code))
                if len(rows):
                    places[site, batch] = rows, step_N[rows], layer_N[rows]
        return Layout(steps.astype(np.int64), len(step_N), places)

    def _layer_indices(self, keys: Mapping[str, tuple[Indices, list[str]]]) -> Indices:
        """The layer index of each row."""
        (layer_N, names), (kind_N, kinds), (block_N, _) = (
            keys[name] for name in ("layer", "kind", "block")
        )
        _, first = np.unique(layer_N, return_index=True)
        first = np.sort(first)  # np.unique sorts by name; this restores the order of the model.
        found = [Layer(names[layer_N[n]], int(block_N[n]), kinds[kind_N[n]]) for n in first]
        index = np.zeros(len(names) or 1, np.intp)
        index[layer_N[first]] = self.indices(found)
        return index[layer_N]

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)


@dataclass
class CellProbes:
    """The probe rows of one cell.

    A statistic of a large table is read from disk when it is first needed. Letters: ``K`` cells,
    ``S`` steps, ``W`` layers, ``N`` rows of the table.
    """

    folder: Path
    layout: Layout
    quantities: list[Quantity]
    _table: pa.Table | None
    _stats: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    @classmethod
    def read(
        cls, folder: Path, layers: Layers, record: Mapping[str, Any] | None = None
    ) -> "CellProbes":
        """The cell so far. New layers are added to ``layers``. ``record``: if it has been read."""
        table = load_cell_table(folder, "probes", record=record)
        layout = layers.layout(table)
        quantities = layout.measured(table, len(layers))
        return cls(folder, layout, quantities, table if len(table) <= KEPT_ROWS else None)

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """The steps measured, ascending."""
        return self.layout.steps

    @property
    def in_memory(self) -> bool:
        """Whether nothing is read from disk any more."""
        return self._table is not None

    def rows(self, columns: Sequence[str]) -> pa.Table:
        """Some columns of the rows of the layout; no rows if the cell was restarted since."""
        table = self._table
        if table is None:
            table = load_cell_table(self.folder, "probes", columns)
        rows = self.layout.rows if len(table) >= self.layout.rows else 0
        return table.select(list(columns)).slice(0, rows)

    def load(self, quantity: Quantity) -> None:
        """Read what :func:`stacked` needs. Raises as ``load_cell_table`` does."""
        for stat in (quantity.stat, "nonfinite"):
            if stat not in self._stats and not self.in_memory:
                self._stats[stat] = self.column(stat)

    def column(self, stat: str) -> npt.NDArray[np.float32]:
        """A statistic of all rows, ``[N]``; NaN if the cell was restarted since."""
        if stat in self._stats:
            return self._stats[stat]
        values: npt.NDArray[np.float32] = self.rows([stat])[stat].to_numpy()
        return values if len(values) else np.full(self.layout.rows, np.nan, np.float32)


def stacked(
    cells: Sequence[CellProbes], quantity: Quantity, width: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """``(values, missing)`` of cells with one layout, both ``[K, S, width]``.

    A number per step and layer, and whether it was not measured. ``width``: the number of layers of
    the study so far.
    """
    layout = cells[0].layout
    shape = (len(cells), len(layout.steps), width)
    values, missing = np.full(shape, np.nan, np.float32), np.ones(shape, np.bool_)
    if (quantity.site, quantity.batch) not in layout.places:
        return values, missing
    rows, step, layer = layout.places[quantity.site, quantity.batch]
    measured, nonfinite = (
        np.stack([cell.column(stat)[rows] for cell in cells])
        for stat in (quantity.stat, "nonfinite")
    )
    values[:, step, layer] = measured
    # Tables hold NaN also for a statistic that was not measured; `nonfinite` tells them apart.
    missing[:, step, layer] = np.isnan(measured) & ~(nonfinite > 0)
    return values, missing


def _codes(column: pa.ChunkedArray) -> tuple[Indices, list[str]]:
    """A column as integers, and the strings that they stand for; none for a column of integers."""
    if not pa.types.is_dictionary(column.type):
        return column.to_numpy().astype(np.intp), []
    whole = column.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # No rows, so no chunks to combine.
        return np.empty(0, np.intp), []
    return whole.indices.to_numpy().astype(np.intp), whole.dictionary.to_pylist()
