"""The measurements of one step, from the parts of a probe to a table on the host.

All numbers of a step come to the host in one copy. Letters: ``K`` cells, ``S`` sites, ``L`` layers.
"""

from collections.abc import Callable, Collection, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from study.adapters.processes import ALONE, Processes
from study.probes.layers import AdaptedLayer, Stack
from study.probes.sites import OF_FACTORS, TENSORS, WHOLE, SiteSource
from study.probes.statistics import (
    MAX,
    OF_A_PART,
    WRITTEN,
    ScaledSums,
    added_up,
    chunks_of,
    combine,
    joined,
    no_sums,
    statistics,
    unscaled,
    with_norms,
)
from study.vocabulary.quantities import DESCENT, MEAN_NORM, MODEL_WIDE, PRODUCTS, SITES, UNIONS


class HostCopy:
    """A copy of a tensor to the host that does not block the device."""

    def __init__(self, x: Tensor) -> None:
        self._copied: Any = None  # an event of the device
        self._on_host = x
        if x.device.type != "cpu":
            device = torch.get_device_module(x.device)
            self._on_host = torch.empty_like(x, device="cpu", pin_memory=True).copy_(
                x, non_blocking=True
            )
            self._copied = device.Event()
            self._copied.record(device.current_stream(x.device))

    @property
    def arrived(self) -> bool:
        """Whether the copy is complete, so that :meth:`numpy` returns at once."""
        return self._copied is None or bool(self._copied.query())

    def numpy(self) -> np.ndarray:
        """The numbers. Waits for the copy."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._on_host.numpy()


class Measurements:
    """Numbers by site, layer and cell: entered on the device, sent to the host in one copy, read.

    ``wanted``: the sites to measure. ``stats``: the statistics. ``world``: the processes that
    measure together. All enter the same places in the same order, and read the sums over processes.
    So only one process enters a number that is the same in all.
    """

    def __init__(
        self,
        layers: Sequence[AdaptedLayer],
        wanted: Set[str],
        stats: Sequence[str],
        world: Processes = ALONE,
    ) -> None:
        self.layers, self.wanted, self.stats, self.world = layers, wanted, stats, world
        stacks = layers[0].stacks()
        self.cells, self.device = sum(each.cells for each in stacks), stacks[0].A_kRD.device
        self.sites = tuple(name for name in SITES if name in wanted)
        self.adder = ScaledSums(added_up(stats), self.device)
        self._pass: int | None = None
        self._sums: list[tuple[int, int, int, Sequence[int], Sequence[int], int | None]] = []
        """Of each entry the site, the layer, the first cell, the rows of the sums that the adder
        gave, the number of elements of each cell, and the pass."""
        self._written: list[tuple[int, int, int, int, Tensor, int | None]] = []
        """Of each entry the site, the layer, the first cell, the column, the value of each cell,
        and the pass."""
        self._copy: HostCopy | None = None
        self._order: list[int] = []
        self._counts = np.zeros((world.size, 0))

    def wanted_of(self, source: SiteSource) -> list[str]:
        """The wanted sites that are computed from ``source``."""
        return [name for name in TENSORS[source] if name in self.wanted]

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Context manager: there is no autograd graph and no autocast."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            yield

    @contextmanager
    def of_pass(self, number: int | None) -> Iterator[None]:
        """Context manager: numbers belong to one pass and can be dropped; to no pass if None."""
        before, self._pass = self._pass, number
        try:
            yield
        finally:
            self._pass = before

    def forget(self, passes: Collection[int]) -> None:
        """Drop the numbers of some passes."""
        self._sums = [entry for entry in self._sums if entry[-1] not in passes]
        self._written = [entry for entry in self._written if entry[-1] not in passes]

    def sums(self, x: Any, real_km: Tensor | None = None) -> list[int]:
        """Add up the elements of k tensors ``[k, ..., F]``, or of an object with ``chunks()``, for
        :meth:`enter`. ``real_km``: the rows that count."""
        with self.measuring():
            whole = isinstance(x, Tensor)
            chunks = chunks_of(x.reshape(len(x), -1, x.shape[-1])) if whole else x.chunks()
            return self.adder.of(chunks, real_km)

    def add(
        self,
        source: SiteSource,
        layer: int,
        stack: Stack,
        *parts: Any,
        real_kn: Tensor | None = None,
        rows_k: Sequence[int] = (),
    ) -> None:
        """Enter the sums of every wanted site of ``source`` for the cells of ``stack``.

        ``parts``: the arguments of the functions in :mod:`study.probes.sites`. ``real_kn``,
        ``rows_k``: the rows that count, and how many; None: all. A product ``gamma B A`` is left
        out if the layer computes something else (:attr:`AdaptedLayer.variant`).
        """
        for name in self.wanted_of(source):
            if name in PRODUCTS and self.layers[layer].variant:
                continue
            with self.measuring():
                x = TENSORS[source][name](*parts)
            if x is None:
                continue
            count_k = [x.numel() // stack.cells] * stack.cells
            if source in OF_FACTORS:
                most = max(stack.ranks)
                count_k = [n * r // most for n, r in zip(count_k, stack.ranks, strict=True)]
            if real_kn is not None:
                count_k = [rows * x.shape[-1] for rows in rows_k]
            if source in WHOLE and self.world.number:
                count_k = [0]
            self.enter(name, layer, stack.first, self.sums(x, real_kn), count_k)

    def enter(
        self, site: str, layer: int, first: int, rows: Sequence[int], count_k: Sequence[int]
    ) -> None:
        """Add the :meth:`sums` of the cells from ``first`` on to those of the same place.

        ``count_k``: the elements of each cell. 0: sums that another process enters too.
        """
        self._sums.append((self.sites.index(site), layer, first, rows, count_k, self._pass))

    def write(
        self,
        site: str,
        layer: int,
        first: int,
        stats_of: Callable[..., dict[str, Tensor]],
        *parts: Any,
    ) -> None:
        """Enter the statistics ``stats_of(*parts)`` by name: a number on the device for each of the
        cells from ``first`` on.

        Nothing is computed if ``site`` is not wanted.
        """
        if site not in self.wanted:
            return
        place = self.sites.index(site), layer, first
        with self.measuring():
            for stat, value_k in stats_of(*parts).items():
                if stat not in OF_A_PART and self.world.number:
                    value_k = torch.zeros_like(value_k)
                self._written.append((*place, WRITTEN[stat], value_k.reshape(-1), self._pass))

    def send(self) -> None:
        """Begin to copy all numbers to the host, in one copy. Does not wait for the device."""
        parts = []
        with self.measuring():
            if self._sums:
                scaled, self._order = self.adder.found()
                if self.world.size > 1:
                    scaled = self._joined(scaled)
                parts.append(scaled.flatten().double())
            if self._written:
                parts.append(torch.cat([entry[4] for entry in self._written]).double())
            if parts:
                self._copy = HostCopy(self.world.gathered(torch.cat(parts)))
        counts = [count for entry in self._sums for count in entry[4]]
        self._counts = self.world.gathered(torch.tensor(counts, dtype=torch.float64)).numpy()

    def _joined(self, scaled: Tensor) -> Tensor:
        """A row for each entry, which is 0 if another process enters it too.

        So all processes send equally many numbers, whatever their chunks.
        """
        places, rows = {row: place for place, row in enumerate(self._order)}, []
        for entry in self._sums:
            row = joined(scaled[[places[row] for row in entry[3]]], self.adder.columns)
            rows.append(row if sum(entry[4]) else torch.zeros_like(row))
        self._sums = [(*e[:3], [row], *e[4:]) for row, e in enumerate(self._sums)]
        self._order = list(range(len(rows)))
        return torch.cat(rows)

    @property
    def arrived(self) -> bool:
        """Whether all numbers are on the host."""
        return self._copy is None or self._copy.arrived

    @cached_property
    def sent(self) -> tuple[np.ndarray, np.ndarray]:
        """All sums, ``[K, S, L, SUMS]`` float64, and the numbers of elements, ``[K, S, L]``.

        A statistic that was not written is NaN. Waits for the copy.
        """
        shape = self.cells, len(self.sites), len(self.layers)
        sums, counts = no_sums(shape), np.zeros(shape)
        if self._copy is None:
            return sums, counts
        columns = (*self.adder.columns, MAX)
        scaled, written = np.split(self._copy.numpy(), [len(columns) * len(self._order)], axis=1)
        if self._sums:
            places = [(k, *e[:2]) for e in self._sums for k, _ in enumerate(e[4], e[2])]
            rows = [[row + k for row in e[3]] for e in self._sums for k, _ in enumerate(e[4])]
            index = tuple(np.repeat(places, [len(of_place) for of_place in rows], axis=0).T)
            of_rows = np.argsort(self._order)[[row for of_place in rows for row in of_place]]
            for of_process, each in zip(scaled, self._counts, strict=True):
                np.add.at(counts, tuple(np.array(places).T), each)
                found = of_process.reshape(-1, len(columns))[of_rows]
                moments = unscaled(found, self.adder.columns)
                for column, of_chunks in zip(self.adder.columns, moments.T, strict=False):
                    np.add.at(sums[..., column], index, of_chunks)
                np.maximum.at(sums[..., MAX], index, moments[:, -1])
        if self._written:
            ends = ((e, e[2] + len(e[4])) for e in self._written)
            each_k = [(k, *e[:2], e[3]) for e, end in ends for k in range(e[2], end)]
            index = tuple(np.array(each_k).T)
            sums[index] = 0.0
            np.add.at(sums, index, written.sum(0))
        return sums, counts


def in_backward() -> bool:
    """Whether a backward pass is running. torch's own checkpointing asks the same."""
    return bool(torch._C._current_graph_task_id() != -1)


KEYS = ("step", "layer", "block", "kind", "site", "batch", "d_in", "d_out")
WHOLE_MODEL: dict[str, Any] = {
    "layer": MODEL_WIDE,
    "block": -1,
    "kind": MODEL_WIDE,
    "d_in": 0,
    "d_out": 0,
}


@dataclass(frozen=True)
class Sent:
    """The measurements of a probe, on their way to the host. ``sites``: those to have rows."""

    found: Measurements
    sites: Sequence[str]
    step: int
    batch: str

    @property
    def arrived(self) -> bool:
        """Whether they are on the host, so that :meth:`frame` returns at once."""
        return self.found.arrived

    def frame(self, cell: int) -> pd.DataFrame:
        """A cell's rows of the ``probes`` table, without ``cell_id``. Waits for the device.

        One per site and layer, and one over the whole model for unions of A and B. ``d_in`` and
        ``d_out`` are the features of the layer; 0 in a row over the whole model.
        """
        sums_KSLX, counts_KSL = self.found.sent
        sums_SLX, counts_SL = with_norms(sums_KSLX[cell], counts_KSL[cell]), counts_KSL[cell]
        parts, order = [], [*KEYS, *self.found.stats]
        for site in self.sites:
            indices = [self.found.sites.index(part) for part in UNIONS.get(site, (site,))]
            sums_LX, counts_L = combine(sums_SLX[indices], axis=0), counts_SL[indices].sum(0)
            seen = counts_L.nonzero()[0]
            if not len(seen):
                continue
            sums_LX, counts_L = sums_LX[seen], counts_L[seen]
            layers = [self.found.layers[index] for index in seen]
            of_layers: dict[str, Any] = {"layer": [layer.name for layer in layers]}
            for name in ("block", "kind", "d_in", "d_out"):
                of_layers[name] = [getattr(layer, name) for layer in layers]
            parts.append(pd.DataFrame(of_layers | self._values(site, sums_LX, counts_L)))
            if site in UNIONS:
                sums_1X, count_1 = combine(sums_LX, axis=0)[None], counts_L.sum()[None]
                parts.append(pd.DataFrame(WHOLE_MODEL | self._values(site, sums_1X, count_1)))
        if not parts:
            return pd.DataFrame(columns=order)
        rows = pd.concat(parts, ignore_index=True)
        return rows.assign(step=self.step, batch=self.batch)[order]

    def _values(self, site: str, sums: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
        values = statistics(sums, counts, self.found.stats)
        for stat, is_here in ((DESCENT.stat, site == DESCENT.site), (MEAN_NORM, site in UNIONS)):
            if stat in values and not is_here:
                values[stat] = np.full_like(values[stat], np.nan)
        return {"site": site, **values}
