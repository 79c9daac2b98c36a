"""Sums over the elements of a tensor, and their way to the host.

A tensor is read once, in chunks that stay in the cache, and leaves a few numbers on its device. All
numbers of a step come to the host in one copy. :mod:`study.probes.statistics` takes roots and means
of them.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from study.probes.statistics import ABS, FOURTH, MAX, SQUARE, no_sums

POWERS = {ABS: 1, SQUARE: 2, FOURTH: 4}
"""The power of |x| that each column adds up."""

CHUNK, GPU_CHUNK = 2**20, 2**26
"""Elements of a chunk. On a CPU a chunk and a copy of it fit into the last cache. With the faster
caches of single cores, calls of small chunks take the time that memory saves. On a GPU a chunk only
bounds temporary memory."""


class Chunked(Protocol):
    """A tensor that is made chunk by chunk, and never held as a whole."""

    def numel(self) -> int:
        """The number of its elements."""
        ...

    def chunks(self) -> Iterator[Tensor]:
        """Its elements, in float32 tensors of about :func:`chunk_size` elements."""
        ...


def chunk_size(device: torch.device) -> int:
    """The number of elements that are read at a time."""
    return CHUNK if device.type == "cpu" else GPU_CHUNK


def chunks_of(x: Tensor | Chunked, rows: Tensor | None = None) -> Iterator[Tensor]:
    """The elements of ``x`` in float32 chunks.

    ``rows``: the indices of the rows of a matrix ``x`` to read; None for all of them.
    """
    if not isinstance(x, Tensor):
        yield from x.chunks()
    elif rows is None:
        for chunk in x.detach().flatten().split(chunk_size(x.device)):
            yield chunk.float()
    else:
        for some in rows.split(max(1, chunk_size(x.device) // x.shape[1])):
            yield x.detach().index_select(0, some).float()


def scaled_sums(chunks: Iterable[Tensor], columns: Sequence[int] = tuple(POWERS)) -> Tensor:
    """For each chunk the sums of t, t^2 and t^4 with t = |x| / max |x|, and max |x|.

    ``columns``: those of :data:`POWERS` to add up. Returns ``[C, len(columns) + 1]``, float32, on
    the device of the chunks. Does not synchronise. The scale keeps fourth powers of small gradients
    within float32. An element that is not finite shows in the largest. A chunk is read from memory
    once: ``pow(4)``, ``isfinite`` and norms would take several times as long.
    """
    numbers = [number for chunk in chunks for number in _scaled(chunk, columns)]
    return torch.stack(numbers).view(-1, len(columns) + 1)


def _scaled(x: Tensor, columns: Sequence[int]) -> list[Tensor]:
    t = x.abs().flatten()
    largest, sums = t.amax(), {}
    if columns:
        t.mul_(largest.clamp_min(torch.finfo(torch.float32).tiny).reciprocal_())
    if ABS in columns:
        sums[ABS] = t.sum()
    if SQUARE in columns or FOURTH in columns:
        sums[SQUARE] = t.square_().sum()
    if FOURTH in columns:
        sums[FOURTH] = torch.dot(t, t)
    return [*(sums[column] for column in columns), largest]


def unscaled(scaled: np.ndarray, columns: Sequence[int] = tuple(POWERS)) -> np.ndarray:
    """The sums of |x|^n and max |x| of each chunk from its :func:`scaled_sums`; float64."""
    largest = scaled[..., -1:].astype(np.float64)
    powers = [POWERS[column] for column in columns]
    with np.errstate(invalid="ignore"):
        return np.concatenate([scaled[..., :-1] * largest**powers, largest], axis=-1)


class Leaving:
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
    :meth:`write`, then call :meth:`send` once, then :meth:`read`.
    """

    def __init__(self, shape: Sequence[int], columns: Sequence[int]) -> None:
        self.shape, self.columns = tuple(shape), tuple(columns)
        self._moments: list[tuple[tuple[int, ...], Tensor, int]] = []
        self._written: list[tuple[tuple[int, ...], Tensor]] = []
        self._leaving: Leaving | None = None

    def add(self, place: tuple[int, ...], scaled: Tensor, count: int) -> None:
        """Add the :func:`scaled_sums` of ``count`` elements to those already at ``place``."""
        self._moments.append((place, scaled, count))

    def write(self, place: tuple[int, ...], column: int, value: Tensor) -> None:
        """Set a column of :data:`~study.probes.statistics.WRITTEN` to a scalar."""
        self._written.append(((*place, column), value))

    def send(self) -> None:
        """Begin to copy all numbers to the host, in one copy. Does not wait for the device."""
        parts = []
        if self._moments:
            parts.append(torch.cat([scaled for _, scaled, _ in self._moments]).flatten().double())
        if self._written:
            parts.append(torch.stack([value.double() for _, value in self._written]))
        if parts:
            self._leaving = Leaving(torch.cat(parts))

    @property
    def arrived(self) -> bool:
        """Whether all numbers are on the host."""
        return self._leaving is None or self._leaving.arrived

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """All sums, ``[*shape, SUMS]`` float64, and the numbers of elements, ``[*shape]``.

        A statistic that was not written is NaN. Waits for the copy.
        """
        sums, counts = no_sums(self.shape), np.zeros(self.shape)
        numbers = np.zeros(0) if self._leaving is None else self._leaving.numpy()
        columns = (*self.columns, MAX)
        chunks = [len(scaled) for _, scaled, _ in self._moments]
        scaled, written = np.split(numbers, [len(columns) * sum(chunks)])
        if self._moments:
            places, _, each = zip(*self._moments, strict=True)
            np.add.at(counts, tuple(np.array(places).T), each)
            index = tuple(np.repeat(places, chunks, axis=0).T)
            moments = unscaled(scaled.reshape(-1, len(columns)), self.columns)
            for column, of_chunks in zip(self.columns, moments.T, strict=False):
                np.add.at(sums[..., column], index, of_chunks)
            np.maximum.at(sums[..., MAX], index, moments[:, -1])
        if self._written:
            places, _ = zip(*self._written, strict=True)
            sums[tuple(np.array(places).T)] = written
        return sums, counts
