"""Sums over the elements of a tensor, and their way to the host.

A tensor is read once on its device and leaves a few numbers there. All numbers of a step come to
the host in one copy. :mod:`study.probes.statistics` takes roots and means of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from study.probes.statistics import MAX, no_sums


def scaled_sums(x: Tensor, padding: Tensor | None = None) -> Tensor:
    """The sums of t, t^2 and t^4 with t = |x| / max |x|, and max |x|.

    Returns ``[4]``, float32, on the device of ``x``. Does not synchronise. ``padding``: indices of
    rows to leave out. The scale keeps fourth powers of small gradients within float32. A non-finite
    element shows in the first sum. This takes a few passes over memory: much cheaper than
    ``pow(4)`` or ``isfinite``.
    """
    t = x.detach().float().abs()
    if padding is not None:
        # Zeros add nothing to the sums. Copying the other rows would take a third of the time.
        t.index_fill_(0, padding, 0.0)
    t = t.flatten()
    largest = t.amax()
    first = t.mul_(1 / largest.clamp_min(torch.finfo(torch.float32).tiny)).sum()
    second = t.square_().sum()
    return torch.stack([first, second, torch.dot(t, t), largest])


def unscaled(scaled: np.ndarray) -> np.ndarray:
    """The columns ``[ABS, SQUARE, FOURTH, MAX]`` from :func:`scaled_sums`, ``[..., 4]`` float64."""
    largest = scaled[..., 3:].astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.concatenate([scaled[..., :3] * largest ** [1, 2, 4], largest], axis=-1)


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

    Enter numbers with :meth:`add` and :meth:`write`, then call :meth:`send` once, then
    :meth:`read`.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
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
            parts.append(torch.stack([scaled for _, scaled, _ in self._moments]).flatten().double())
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
        scaled, written = np.split(numbers, [4 * len(self._moments)])
        if self._moments:
            places, _, each = zip(*self._moments, strict=True)
            index, moments = tuple(np.array(places).T), unscaled(scaled.reshape(-1, 4))
            np.add.at(sums[..., :MAX], index, moments[:, :MAX])
            np.maximum.at(sums[..., MAX], index, moments[:, MAX])
            np.add.at(counts, index, each)
        if self._written:
            places, _ = zip(*self._written, strict=True)
            sums[tuple(np.array(places).T)] = written
        return sums, counts
