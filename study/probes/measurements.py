"""The measurements of one step. Letters: ``K`` cells, ``S`` sites, ``L`` layers."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from study.adapters.bank import Stack
from study.probes.layers import AdaptedLayer
from study.probes.sites import OF_FACTORS, TENSORS
from study.probes.statistics import (
    MAX,
    WRITTEN,
    ScaledSums,
    chunks_of,
    combine,
    no_sums,
    statistics,
    unscaled,
    with_norms,
    written_by,
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
        return self._copied is None or bool(self._copied.query())

    def numpy(self) -> np.ndarray:
        if self._copied is not None:
            self._copied.synchronize()
        return self._on_host.numpy()


Added = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Adds sums ``[places, columns]`` over processes, and takes the largest of ``[places]``."""


class Entry(NamedTuple):
    """Numbers of the cells from ``first`` on, at one site of one layer, in one pass or in none.

    ``what``, ``each_k``: the rows that the adder gave for the first cell, one for each chunk, and
    the number of elements of each cell; or a statistic's name, and its values on the device.
    """

    site: str
    layer: int
    first: int
    of_pass: int | None
    what: Any
    each_k: Any


class Measurements:
    """Numbers by site, layer and cell, sent to the host in one copy."""

    def __init__(
        self, layers: Sequence[AdaptedLayer], wanted: Set[str], stats: Sequence[str]
    ) -> None:
        self.layers, self.wanted, self.stats = layers, wanted, stats
        stacks = layers[0].stacks()
        self.cells, self.device = sum(each.cells for each in stacks), stacks[0].A_kRD.device
        self.sites = tuple(name for name in SITES if name in wanted)
        self.shape = self.cells, len(self.sites), len(layers)
        self.adder = ScaledSums(self.device)
        self._pass: int | None = None
        self._sums: list[Entry] = []
        self._written: list[Entry] = []
        self._is_written = np.zeros((math.prod(self.shape), len(written_by(stats))), bool)
        self.copy: HostCopy  # once it is sent

    def wanted_of(self, source: str) -> list[str]:
        return [name for name in TENSORS[source] if name in self.wanted]

    @contextmanager
    def measuring(self) -> Iterator[None]:
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
        self._sums = [entry for entry in self._sums if entry.of_pass not in passes]
        self._written = [entry for entry in self._written if entry.of_pass not in passes]

    def sums(self, x: Any, real_km: Tensor | None = None) -> list[int]:
        """Add up the elements of k tensors ``[k, ..., F]``, or of an object with ``chunks()``."""
        with self.measuring():
            whole = isinstance(x, Tensor)
            chunks = chunks_of(x.reshape(len(x), -1, x.shape[-1])) if whole else x.chunks()
            return self.adder.of(chunks, real_km)

    def add(
        self,
        source: str,
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
            self.enter(name, layer, stack.first, self.sums(x, real_kn), count_k)

    def enter(
        self, site: str, layer: int, first: int, rows: Sequence[int], count_k: Sequence[int]
    ) -> None:
        self._sums.append(Entry(site, layer, first, self._pass, rows, count_k))

    def write(
        self,
        site: str,
        layer: int,
        first: int,
        stats_of: Callable[..., dict[str, Tensor]],
        *parts: Any,
    ) -> None:
        """Enter ``stats_of(*parts)`` by name: a number for each cell from ``first`` on."""
        if site in self.wanted:
            with self.measuring():
                for stat, value_k in stats_of(*parts).items():
                    place = site, layer, first, self._pass
                    self._written.append(Entry(*place, stat, value_k.reshape(-1)))

    def send(self, added: Added | None = None, elsewhere: Collection[str] = ()) -> None:
        """Add up all numbers by place, and begin to copy them to the host, without waiting."""
        kept = [entry for entry in self._sums if entry.site not in elsewhere]
        counts, rows, index = np.zeros(math.prod(self.shape)), [], []
        for entry in kept:  # layers that read the same tensor share its rows
            for k, (place, count) in enumerate(zip(self._places(entry), entry.each_k, strict=True)):
                counts[place] += count
                rows += [row + k for row in entry.what]
                index += [place] * len(entry.what)
        with self.measuring():
            scaled, order = self.adder.found()
            places = self._to_device(np.array(index, int))
            moments = unscaled(scaled)
            moments = moments[self._to_device(np.argsort(order)[np.array(rows, int)])]
            sums = moments.new_zeros(len(counts), MAX)
            sums.index_add_(0, places, moments[:, :-1])
            largest = moments.new_zeros(len(counts))
            largest.scatter_reduce_(0, places, moments[:, -1], "amax")
            columns = sums, self._to_device(counts)[:, None], self._stats(elsewhere)
            sums = torch.cat(columns, 1)
            if added is not None:
                sums, largest = added(sums, largest)
            self.copy = HostCopy(torch.cat([sums, largest[:, None]], 1))

    def _stats(self, elsewhere: Collection[str]) -> Tensor:
        kept = [e for e in self._written if not {e.site, e.what} & {*elsewhere}]
        places = [place for entry in kept for place in self._places(entry)]
        stats = written_by(self.stats)
        columns = [stats.index(entry.what) for entry in kept for _ in self._places(entry)]
        self._is_written[places, columns] = True
        total = torch.zeros(self._is_written.shape, dtype=torch.float64, device=self.device)
        if kept:
            index = tuple(self._to_device(np.array(each)) for each in (places, columns))
            values = torch.cat([entry.each_k for entry in kept]).double()
            total.index_put_(index, values, accumulate=True)
        return total

    def _places(self, entry: Entry) -> list[int]:
        _, S, L = self.shape
        first = (entry.first * S + self.sites.index(entry.site)) * L + entry.layer
        return [first + k * S * L for k in range(len(entry.each_k))]

    def _to_device(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(self.device, non_blocking=True)

    @cached_property
    def sent(self) -> tuple[np.ndarray, np.ndarray]:
        """All sums, ``[K, S, L, SUMS]`` (NaN: not written), and numbers of elements. Waits for the
        copy."""
        found, sums = self.copy.numpy(), no_sums((math.prod(self.shape),))
        stats = [WRITTEN[name] for name in written_by(self.stats)]
        sums[:, :MAX], sums[:, MAX] = found[:, :MAX], found[:, -1]
        sums[:, stats] = np.where(self._is_written, found[:, MAX + 1 : -1], sums[:, stats])
        return sums.reshape(*self.shape, -1), found[:, MAX].reshape(self.shape)


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
        return self.found.copy.arrived

    def frame(self, cell: int) -> pd.DataFrame:
        """A cell's rows of the ``probes`` table, without ``cell_id``: one per site and layer, and
        of unions of A and B one over the whole model, with ``d_in = d_out = 0``."""
        sums_KSLX, counts_KSL = self.found.sent
        sums_SLX, counts_SL = with_norms(sums_KSLX[cell], counts_KSL[cell]), counts_KSL[cell]
        parts, order = [], [*KEYS, *self.found.stats]
        for site in self.sites:
            indices = [self.found.sites.index(part) for part in UNIONS.get(site, (site,))]
            sums_LX, counts_L = combine(sums_SLX[indices]), counts_SL[indices].sum(0)
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
                sums_1X, count_1 = combine(sums_LX)[None], counts_L.sum()[None]
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
