"""The measurements of one step: entered by the parts of a probe, sent to the host, put in a table.

All numbers of a step come to the host in one copy. Letters: ``K`` cells, ``S`` sites, ``L`` layers.
"""

from collections.abc import Callable, Collection, Iterator, Sequence, Set
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from study.adapters.processes import ALONE, Processes
from study.probes.layers import AdaptedLayer
from study.probes.sites import TENSORS, WHOLE, SiteSource
from study.probes.statistics import (
    MAX,
    OF_A_PART,
    WRITTEN,
    Chunked,
    added_up,
    chunks_of,
    combine,
    joined,
    no_sums,
    scaled_sums,
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


class Ledger:
    """The numbers of one step, by place: an index into ``shape``.

    ``columns``: those that :func:`scaled_sums` adds up. Enter numbers with :meth:`add` and
    :meth:`write`, then call :meth:`send` once, then :meth:`read`. The processes of ``world`` enter
    as many numbers at the same places in the same order, and read the sums of all.
    """

    def __init__(
        self, shape: Sequence[int], columns: Sequence[int], world: Processes = ALONE
    ) -> None:
        self.shape, self.columns, self.world = tuple(shape), tuple(columns), world
        self.of_pass: int | None = None
        """The pass that numbers are entered of; None if they are of no single pass."""
        self._moments: list[tuple[tuple[int, ...], Tensor, int, int | None]] = []
        self._written: list[tuple[tuple[int, ...], Tensor, int | None]] = []
        self._copy: HostCopy | None = None
        self._counts = np.zeros((world.size, 0))

    def add(self, place: tuple[int, ...], scaled: Tensor, count: int) -> None:
        """Add the :func:`scaled_sums` of ``count`` elements to those already at ``place``."""
        self._moments.append((place, scaled, count, self.of_pass))

    def write(self, place: tuple[int, ...], column: int, value: Tensor) -> None:
        """Set a column of :data:`~study.probes.statistics.WRITTEN` to a scalar."""
        self._written.append(((*place, column), value, self.of_pass))

    def forget(self, passes: Collection[int]) -> None:
        """Drop the numbers of some passes."""
        self._moments = [entry for entry in self._moments if entry[-1] not in passes]
        self._written = [entry for entry in self._written if entry[-1] not in passes]

    def send(self) -> None:
        """Begin to copy all numbers to the host, in one copy. Does not wait for the device."""
        parts = []
        if self._moments:
            parts.append(torch.cat([entry[1] for entry in self._moments]).flatten().double())
        if self._written:
            parts.append(torch.stack([entry[1].double() for entry in self._written]))
        if parts:
            self._copy = HostCopy(self.world.gathered(torch.cat(parts)))
        counts = torch.tensor([entry[2] for entry in self._moments], dtype=torch.float64)
        self._counts = self.world.gathered(counts).numpy()

    @property
    def arrived(self) -> bool:
        """Whether all numbers are on the host."""
        return self._copy is None or self._copy.arrived

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """All sums, ``[*shape, SUMS]`` float64, and the numbers of elements, ``[*shape]``.

        A statistic that was not written is NaN. Waits for the copy.
        """
        sums, counts = no_sums(self.shape), np.zeros(self.shape)
        if self._copy is None:
            return sums, counts
        columns = (*self.columns, MAX)
        chunks = [len(entry[1]) for entry in self._moments]
        scaled, written = np.split(self._copy.numpy(), [len(columns) * sum(chunks)], axis=1)
        if self._moments:
            places = [entry[0] for entry in self._moments]
            index = tuple(np.repeat(np.array(places), chunks, axis=0).T)
            for of_process, each in zip(scaled, self._counts, strict=True):
                np.add.at(counts, tuple(np.array(places).T), each)
                moments = unscaled(of_process.reshape(-1, len(columns)), self.columns)
                for column, of_chunks in zip(self.columns, moments.T, strict=False):
                    np.add.at(sums[..., column], index, of_chunks)
                np.maximum.at(sums[..., MAX], index, moments[:, -1])
        if self._written:
            index = tuple(np.array([entry[0] for entry in self._written]).T)
            sums[index] = written.sum(0)
        return sums, counts


class Measurements:
    """Enters numbers by site, layer and cell.

    ``wanted``: the sites to measure. ``stats``: what to measure there. ``world``: the processes
    that measure together. The numbers of all of them add, so a number that is the same in every
    process is entered by one of them.
    """

    def __init__(
        self,
        layers: Sequence[AdaptedLayer],
        wanted: Set[str],
        stats: Sequence[str],
        world: Processes = ALONE,
    ) -> None:
        self.layers, self.wanted, self.stats, self.world = layers, wanted, stats, world
        pairs = layers[0].pairs()
        self.cells, self.device = len(pairs), pairs[0].A_RD.device
        self.sites = tuple(name for name in SITES if name in wanted)
        """The second axis of the ledger, ``[K, S, L]``."""
        self.ledger = Ledger((self.cells, len(self.sites), len(layers)), added_up(stats), world)

    def wanted_of(self, source: SiteSource) -> list[str]:
        """The wanted sites that are computed from ``source``."""
        return [name for name in TENSORS[source] if name in self.wanted]

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Inside, there is no autograd graph and no autocast."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            yield

    @contextmanager
    def of_pass(self, number: int | None) -> Iterator[None]:
        """Inside, numbers are of one pass, so that they can be dropped; of no pass if None."""
        before, self.ledger.of_pass = self.ledger.of_pass, number
        try:
            yield
        finally:
            self.ledger.of_pass = before

    def sums(self, x: Tensor | Chunked, rows: Tensor | None = None) -> Tensor:
        """The :func:`~study.probes.statistics.scaled_sums` of ``x``, or of some rows of it."""
        columns = self.ledger.columns
        if rows is not None and not len(rows):  # a process may have no real token
            return torch.zeros(1, len(columns) + 1, device=self.device)
        sums = scaled_sums(chunks_of(x, rows), columns)
        # Processes enter as many numbers, however many chunks each has.
        return sums if self.world.size == 1 else joined(sums, columns)

    def add(self, source: SiteSource, layer: int, cell: int, *parts: Any) -> None:
        """Enter the sums of every wanted site of ``source``.

        ``parts``: the arguments of the functions in :mod:`study.probes.sites`. A product ``gamma B
        A`` is left out if the layer computes something else (:attr:`AdaptedLayer.variant`).
        """
        for name in self.wanted_of(source):
            if name in PRODUCTS and self.layers[layer].variant:
                continue
            with self.measuring():
                tensor = TENSORS[source][name](*parts)
                if tensor is not None:
                    sums, count = self.sums(tensor), tensor.numel()
                    if source in WHOLE and self.world.number:
                        sums, count = torch.zeros_like(sums), 0
                    self.enter(name, layer, cell, sums, count)

    def enter(self, site: str, layer: int, cell: int, scaled: Tensor, count: int) -> None:
        """Enter the :meth:`sums` of ``count`` elements."""
        self.ledger.add((cell, self.sites.index(site), layer), scaled, count)

    def write(
        self,
        site: str,
        layer: int,
        cell: int,
        stats_of: Callable[..., dict[str, Tensor]],
        *parts: Any,
    ) -> None:
        """Enter the statistics ``stats_of(*parts)``, scalars on the device by name.

        Nothing is computed if ``site`` is not wanted.
        """
        if site not in self.wanted:
            return
        with self.measuring():
            for stat, value in stats_of(*parts).items():
                if stat not in OF_A_PART and self.world.number:
                    value = torch.zeros_like(value)
                self.ledger.write((cell, self.sites.index(site), layer), WRITTEN[stat], value)


def in_backward() -> bool:
    """Whether a backward pass is running. torch's own checkpointing asks the same."""
    return bool(torch._C._current_graph_task_id() != -1)


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
