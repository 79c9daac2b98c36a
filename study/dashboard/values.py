"""The probed values of studies, packed for the browser, one quantity at a time.

Values take two bytes each, so a page of 20 cells, 210 layers and 200 steps stays under 10 MB. A
code holds the sign of a value and its logarithm in steps of 0.2 %, so the error is at most 0.1 %.
It is larger only in a cell that spans more than 27 decades; its ``resolution`` says so. Zero, NaN,
both infinities and "not measured" have their own codes.

Codes are stored as differences from step to step, with the sign in the last bit and low bytes
before high bytes. gzip then sees many small numbers and zeros. ``page/values.js`` unpacks this.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from study.vocabulary.quantities import ALIGNMENTS, MODEL_WIDE, STATS

SHOWN = tuple(stat for stat in STATS if stat not in (*ALIGNMENTS, "nonfinite"))
"""The statistics on the page. Alignments are inputs of the theory only."""
RESOLUTION = 2e-3
"""The natural logarithm between two codes. The largest error is half of it."""
LARGEST = 32_000
ZERO, NAN, INFINITE, MISSING = 0, 32_766, 32_767, -32_768
"""Codes other than ``±1 ... ±LARGEST``. ``-INFINITE`` is minus infinity."""


class Measured(NamedTuple):
    """A quantity on the page: a statistic at a site on a batch."""

    site: str
    stat: str
    batch: str


class Tile(NamedTuple):
    """A tile on the page. The whole model is the layer ``model`` of block -1."""

    name: str
    block: int
    kind: str


class Values:
    """The probed values of studies, by what their cells' keys begin with; all layers; each cell's
    steps."""

    def __init__(self, probes: Mapping[str, pd.DataFrame]) -> None:
        self._probes = {prefix: table for prefix, table in probes.items() if len(table)}
        self.layers = _layers(self._probes.values())
        self.steps = {
            prefix + str(cell): np.unique(step)
            for prefix, table in self._probes.items()
            for cell, step in table.groupby("cell_id", observed=True, sort=False)["step"]
        }

    def layers_of(self, prefix: str) -> list[dict[str, Any]]:
        """The layers of one study, each with the ``index`` of its values."""
        own = set(self._probes[prefix]["layer"]) if prefix in self._probes else set()
        return [
            {"index": index, **layer._asdict()}
            for index, layer in enumerate(self.layers)
            if layer.name in own or layer.name == MODEL_WIDE
        ]

    def measured(self, prefix: str | None = None) -> list[Measured]:
        """Quantities that some cell measured (with ``prefix``: of one study), in table order."""
        found: dict[Measured, None] = {}
        for own, table in self._probes.items():
            if prefix in (None, own):
                stats = [stat for stat in SHOWN if stat in table]
                places = table.groupby(["site", "batch"], observed=True, sort=False)[stats].count()
                for (site, batch), counts in zip(places.index, places.to_numpy(), strict=True):
                    there = [stat for stat, count in zip(stats, counts, strict=True) if count]
                    found |= dict.fromkeys(Measured(site, stat, batch) for stat in there)
        return list(found)

    def message(self, quantity: Measured) -> bytes:
        """A header in JSON after its length in 4 bytes, then the packed values of each cell."""
        blocks, parts = [], []
        for key, steps, values_SW, missing_SW in self._cells(quantity):
            scale, packed = pack_values(values_SW, missing_SW)
            blocks.append({"cell": key, "steps": steps.tolist(), **scale})
            parts.append(packed)
        header = {"quantity": quantity, "width": len(self.layers), "blocks": blocks}
        text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
        return b"".join([len(text).to_bytes(4, "little"), text, *parts])

    def _cells(self, quantity: Measured) -> Iterator[tuple[str, Any, Any, Any]]:
        """By cell: its key, its steps, a number per step and layer, and whether it is missing."""
        place_of = {layer.name: place for place, layer in enumerate(self.layers)}
        found: dict[str, list[npt.NDArray[Any]]] = {}
        for prefix, table in self._probes.items():
            here = (table["site"] == quantity.site) & (table["batch"] == quantity.batch)
            rows = table[here] if quantity.stat in table else table.iloc[:0]
            places = rows["layer"].map(place_of)
            columns = [rows["step"], places, rows.get(quantity.stat, places), rows["nonfinite"]]
            numbers = [column.to_numpy(float) for column in columns]
            by_cell = rows.groupby("cell_id", observed=True, sort=False).indices
            found |= {
                prefix + str(cell): [column[at] for column in numbers]
                for cell, at in by_cell.items()
            }
        for key, steps in self.steps.items():
            shape = len(steps), len(self.layers)
            values_SW, missing_SW = np.full(shape, np.nan), np.ones(shape, bool)
            if key in found:
                step, place, value, nonfinite = found[key]
                at = np.searchsorted(steps, step), place.astype(int)
                values_SW[at] = value
                # A table holds NaN also for a statistic that was not measured.
                missing_SW[at] = np.isnan(value) & ~(nonfinite > 0)
            yield key, steps, values_SW, missing_SW


def _layers(tables: Iterable[pd.DataFrame]) -> list[Tile]:
    """The layers of probe tables, each once. The whole model comes first."""
    found = {MODEL_WIDE: Tile(MODEL_WIDE, -1, MODEL_WIDE)}
    for table in tables:
        for name, block, kind in table[["layer", "block", "kind"]].drop_duplicates().values:
            found.setdefault(str(name), Tile(str(name), int(block), str(kind)))
    return list(found.values())


def pack_values(
    values_SW: npt.NDArray[np.floating], missing_SW: npt.NDArray[np.bool_]
) -> tuple[dict[str, float], bytes]:
    """Values of steps by layers in ``2 S W`` bytes, and their scale: ``base``, the logarithm of the
    code 1, and ``resolution``. ``missing_SW``: not measured (NaN is)."""
    values = values_SW.astype(np.float64)
    has_log = np.isfinite(values) & (values != 0) & ~missing_SW
    logs = np.log(np.abs(values[has_log]))
    base = float(logs.min()) if len(logs) else 0.0
    span = float(logs.max()) - base if len(logs) else 0.0
    resolution = max(RESOLUTION, span / (LARGEST - 1))

    codes = np.full(values.shape, ZERO, np.int16)
    codes[has_log] = (np.rint((logs - base) / resolution) + 1) * np.sign(values[has_log])
    codes[np.isnan(values)] = NAN
    codes[values == math.inf] = INFINITE
    codes[values == -math.inf] = -INFINITE
    codes[missing_SW] = MISSING
    # Differences overflow and wrap; the browser's sum wraps back.
    differences = np.diff(codes, axis=0, prepend=np.zeros_like(codes[:1]))
    signs_last = ((differences << 1) ^ (differences >> 15)).astype("<i2")
    planes = signs_last.view(np.uint8).reshape(-1, 2).T
    return {"base": base, "resolution": resolution}, planes.tobytes()
