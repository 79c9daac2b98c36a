"""The probed values of studies, packed for the browser, one quantity at a time.

A value is a float of 4 bytes with 11 bits of its mantissa, so the error is below 0.03 % and gzip
halves it. -0 stands for "not measured". ``page/values.js`` reads this.
"""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from study.analysis.verdicts import BATCHES_OF
from study.dashboard.studies import ShownStudy
from study.vocabulary.quantities import ALIGNMENTS, FIRST_READ, MEAN_LOG, MODEL_WIDE, STATS, TRAIN

SHOWN = tuple(stat for stat in STATS if stat not in (*ALIGNMENTS, "nonfinite"))
"""The statistics on the page. Alignments are inputs of the theory only."""
LOST_BITS = 12
"""Of the 23 bits of a float's mantissa."""


class Measured(NamedTuple):
    """A quantity on the page: a statistic at a site on a batch."""

    site: str
    stat: str
    batch: str


class Values:
    """The probed values of studies and their exponents, by the study's prefix; all layers; each
    cell's steps."""

    def __init__(self, studies: Sequence[ShownStudy]) -> None:
        tables = {study.prefix: study.tables for study in studies}
        self._probes = {key: one.probes for key, one in tables.items() if len(one.probes)}
        self._exponents = {key: one.exponents for key, one in tables.items() if len(one.exponents)}
        self.layers = _layers(self._probes.values())
        self.steps = {
            prefix + str(cell): np.unique(step)
            for prefix, table in self._probes.items()
            for cell, step in table.groupby("cell_id", observed=True, sort=False)["step"]
        }

    def layers_of(self, prefix: str) -> list[dict[Any, Any]]:
        """The layers of one study, each with the ``index`` of its values."""
        own = set(self._probes[prefix]["layer"]) if prefix in self._probes else set()
        here = self.layers["name"].isin({*own, MODEL_WIDE})
        return self.layers[here].reset_index(names="index").to_dict("records")

    def measured(self, prefix: str | None = None) -> list[Measured]:
        """Quantities that some cell measured (with ``prefix``: of one study).

        :data:`~study.vocabulary.quantities.FIRST_READ` come first, each on the batch that the
        report reads; others in table order.
        """
        found: dict[Measured, None] = {}
        for own, table in self._probes.items():
            if prefix in (None, own):
                stats = [stat for stat in SHOWN if stat in table]
                places = table.groupby(["site", "batch"], observed=True, sort=False)[stats].count()
                for (site, batch), counts in zip(places.index, places.to_numpy(), strict=True):
                    there = [stat for stat, count in zip(stats, counts, strict=True) if count]
                    found |= dict.fromkeys(Measured(site, stat, batch) for stat in there)
        order = {pair: n for n, pair in enumerate(FIRST_READ)}
        condition = {quantity.site: batches[0] for quantity, batches in BATCHES_OF.items()}
        return sorted(
            found,
            key=lambda q: (
                order.get((q.site, q.stat), len(order)),
                q.batch != condition.get(q.site, TRAIN),
            ),
        )

    def message(self, quantity: Measured) -> bytes:
        """A header in JSON after its length in 4 bytes, then the values of each cell."""
        measured = self._by_cell(quantity)
        blocks, parts = [], []
        for key, steps in self.steps.items():
            shape = len(steps), len(self.layers)
            values_SW, missing_SW = np.full(shape, np.nan), np.ones(shape, bool)
            if key in measured:
                step, place, value, nonfinite = measured[key]
                at = np.searchsorted(steps, step), place.astype(int)
                values_SW[at] = value
                # A table holds NaN also for a statistic that was not measured.
                missing_SW[at] = np.isnan(value) & ~(nonfinite > 0)
            blocks.append({"cell": key, "steps": steps.tolist()})
            parts.append(rounded(values_SW, missing_SW).tobytes())
        header = {"width": len(self.layers), "blocks": blocks, "lines": self._lines(quantity)}
        text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)  # the floats after it are aligned
        return b"".join([len(text).to_bytes(4, "little"), text, *parts])

    def _lines(self, quantity: Measured) -> dict[str, dict[int, dict[str, list[Any]]]]:
        """By curve, step and row: exponent, ends of its interval, seeds and ranks. The row is the
        index of a layer, or the kind of the layers whose mean log it is."""
        place_of = {name: str(place) for place, name in self.layers["name"].items()}
        found: dict[str, dict[int, dict[str, list[Any]]]] = {}
        for prefix, table in self._exponents.items():
            own = table[(table[list(quantity._fields)] == [*quantity]).all(axis=1)]
            own = own[own["exponent"].notna()]
            rows = own["layer"].astype(str).map(place_of)
            rows = rows.where(own["layer"] != MEAN_LOG, own["kind"].astype(str))
            columns = [own[name].tolist() for name in ("curve_id", "step")]
            numbers = own[["exponent", "ci_low", "ci_high", "seeds", "ranks"]].round(4)
            for curve, step, row, of in zip(
                *columns, rows, numbers.to_numpy().tolist(), strict=True
            ):
                if isinstance(row, str):
                    values = [None if math.isnan(one) else one for one in of]
                    found.setdefault(prefix + curve, {}).setdefault(step, {})[row] = values
        return found

    def _by_cell(self, quantity: Measured) -> dict[str, list[npt.NDArray[Any]]]:
        """By the key of a cell, of each of its rows: step, place of the layer, value, nonfinite."""
        place_of = {name: place for place, name in self.layers["name"].items()}
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
        return found


def _layers(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The layers of probe tables, each once: ``name``, ``block`` and ``kind``. The whole model, the
    layer ``model`` of block -1, comes first."""
    parts = [pd.DataFrame({"layer": [MODEL_WIDE], "block": [-1], "kind": [MODEL_WIDE]})]
    for table in tables:
        layers = table[["layer", "block", "kind"]].drop_duplicates("layer")
        parts.append(layers.astype({"layer": str, "block": int, "kind": str}))
    found = pd.concat(parts).drop_duplicates("layer", ignore_index=True)
    return found.rename(columns={"layer": "name"})


def rounded(
    values: npt.NDArray[np.floating], missing: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Values as floats whose last :data:`LOST_BITS` bits are 0. ``missing``: not measured."""
    bits = (values.astype("<f4") + np.float32(0)).view("<u4")  # + 0: a measured -0 is 0
    bits = (bits + (1 << LOST_BITS - 1)) >> LOST_BITS << LOST_BITS
    return np.where(missing, np.float32(-0.0), bits.view("<f4"))
