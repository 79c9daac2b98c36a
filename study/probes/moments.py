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

from study.adapters.world import ALONE, World
from study.probes.statistics import ABS, FOURTH, MAX, SQUARE, no_sums

POWERS = {ABS: 1, SQUARE: 2, FOURTH: 4}
"""The power of |x| that each column adds up."""

CHUNK, GPU_CHUNK = 2**20, 2**26
"""Elements of a chunk. On a CPU a chunk and a copy of it fit into the last cache. Smaller chunks
would fit into the cache of a core, but their many calls take the time that this saves. On a GPU a
chunk bounds temporary memory and nothing else."""


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


def joined(scaled: Tensor, columns: Sequence[int] = tuple(POWERS)) -> Tensor:
    """The :func:`scaled_sums` of several chunks as those of one, ``[1, len(columns) + 1]``."""
    largest = scaled[:, -1:].amax(0, keepdim=True)
    powers = torch.tensor([POWERS[column] for column in columns], device=scaled.device)
    ratio = scaled[:, -1:] / largest.clamp_min(torch.finfo(scaled.dtype).tiny)
    return torch.cat([(scaled[:, :-1] * ratio**powers).sum(0, keepdim=True), largest], dim=1)


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
    :meth:`write`, then call :meth:`send` once, then :meth:`read`. The processes of ``world`` enter
    as many numbers at the same places in the same order, and read the sums of all.
    """

    def __init__(self, shape: Sequence[int], columns: Sequence[int], world: World = ALONE) -> None:
        self.shape, self.columns, self.world = tuple(shape), tuple(columns), world
        self._moments: list[tuple[tuple[int, ...], Tensor, int]] = []
        self._written: list[tuple[tuple[int, ...], Tensor]] = []
        self._leaving: Leaving | None = None
        self._counts = np.zeros((world.size, 0))

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
            self._leaving = Leaving(self.world.gathered(torch.cat(parts)))
        counts = torch.tensor([count for _, _, count in self._moments], dtype=torch.float64)
        self._counts = self.world.gathered(counts).numpy()

    @property
    def arrived(self) -> bool:
        """Whether all numbers are on the host."""
        return self._leaving is None or self._leaving.arrived

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """All sums, ``[*shape, SUMS]`` float64, and the numbers of elements, ``[*shape]``.

        A statistic that was not written is NaN. Waits for the copy.
        """
        sums, counts = no_sums(self.shape), np.zeros(self.shape)
        if self._leaving is None:
            return sums, counts
        columns = (*self.columns, MAX)
        chunks = [len(scaled) for _, scaled, _ in self._moments]
        scaled, written = np.split(self._leaving.numpy(), [len(columns) * sum(chunks)], axis=1)
        if self._moments:
            places = [place for place, _, _ in self._moments]
            index = tuple(np.repeat(np.array(places), chunks, axis=0).T)
            for of_process, each in zip(scaled, self._counts, strict=True):
                np.add.at(counts, tuple(np.array(places).T), each)
                moments = unscaled(of_process.reshape(-1, len(columns)), self.columns)
                for column, of_chunks in zip(self.columns, moments.T, strict=False):
                    np.add.at(sums[..., column], index, of_chunks)
                np.maximum.at(sums[..., MAX], index, moments[:, -1])
        if self._written:
            index = tuple(np.array([place for place, _ in self._written]).T)
            sums[index] = written.sum(0)
        return sums, counts
