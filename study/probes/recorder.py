"""The measurements of one step, entered by the parts of a probe.

Letters: ``K`` cells, ``S`` sites, ``L`` layers.
"""

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from study.adapters.world import ALONE, World
from study.probes.layers import AdaptedLayer
from study.probes.moments import Chunked, Ledger, chunks_of, joined, scaled_sums
from study.probes.sites import TENSORS, WHOLE, Source
from study.probes.statistics import OF_A_PART, WRITTEN, added_up
from study.vocabulary.quantities import PRODUCTS, SITES


class Recorder:
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
        world: World = ALONE,
    ) -> None:
        self.layers, self.wanted, self.stats, self.world = layers, wanted, stats, world
        pairs = layers[0].pairs()
        self.cells, self.device = len(pairs), pairs[0].A_RD.device
        self.sites = tuple(name for name in SITES if name in wanted)
        """The second axis of the ledger, ``[K, S, L]``."""
        self.ledger = Ledger((self.cells, len(self.sites), len(layers)), added_up(stats), world)

    def wanted_of(self, source: Source) -> list[str]:
        """The wanted sites that are computed from ``source``."""
        return [name for name in TENSORS[source] if name in self.wanted]

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Inside, there is no autograd graph and no autocast."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            yield

    def sums(self, x: Tensor | Chunked, rows: Tensor | None = None) -> Tensor:
        """The :func:`~study.probes.moments.scaled_sums` of ``x``, or of some rows of it."""
        columns = self.ledger.columns
        if rows is not None and not len(rows):  # a process may have no real token
            return torch.zeros(1, len(columns) + 1, device=self.device)
        sums = scaled_sums(chunks_of(x, rows), columns)
        # Processes enter as many numbers, however many chunks each has.
        return sums if self.world.size == 1 else joined(sums, columns)

    def add(self, source: Source, layer: int, cell: int, *parts: Any) -> None:
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
