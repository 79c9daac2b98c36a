"""Sums over the elements of a tensor, and the statistics that are computed from them.

A tensor is read once, in chunks that stay in the cache, and reduced to a few sums on its device.
The host computes the statistics from the sums: one function each. The rows of
:data:`study.vocabulary.quantities.STATS` define them. To add one, add a row there and a function
here. A stat without a function is computed on the device and written as it is
(:meth:`study.probes.measurements.Measurements.write`).

A row of sums has the columns below. Sums add over micro-batches, over A and B, and over layers.
Norms of tensors are known only after the micro-batches are added: :func:`with_norms` fills them in.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from study.vocabulary.quantities import STATS

ABS, SQUARE, FOURTH, MAX, NORM, TENSORS = range(6)
"""Columns: the sums of |x|, x^2 and x^4, and the largest |x|; the sum of the norms of the tensors
that a row joins, and their number."""

Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""A statistic ``[...]`` from rows of sums ``[..., SUMS]`` and numbers of elements ``[...]``."""

HOOKED = "lost", "moved", "start", "parts", "others"
LOST, MOVED, START, PARTS, OTHERS = HOOKED
"""Sums that hooks compute over tokens: of ``d (d - D)``, d what a layer should add to its output, D
what it adds; of ``|dA x|^2`` and ``|A0 x|^2``; of R - 1 times the squares of the parts
``B_k A_k x``, and of the products of different parts."""

STATISTICS: dict[str, Statistic] = {
    "mean_abs": lambda sums, count: sums[..., ABS] / count,
    "rms": lambda sums, count: np.sqrt(sums[..., SQUARE] / count),
    "m4": lambda sums, count: (sums[..., FOURTH] / count) ** 0.25,
    "max_abs": lambda sums, _: sums[..., MAX],
    "norm": lambda sums, _: np.sqrt(sums[..., SQUARE]),
    "mean_norm": lambda sums, _: sums[..., NORM] / sums[..., TENSORS],
    "nonfinite": lambda sums, _: np.where(np.isfinite(sums[..., MAX]), 0.0, 1.0),
    "stable_rank": lambda sums, _: sums[..., SQUARE] / sums[..., WRITTEN["spectral"]] ** 2,
    "swallowed": lambda sums, _: sums[..., WRITTEN[LOST]] / sums[..., SQUARE],
    "rho": lambda sums, _: np.sqrt(sums[..., WRITTEN[MOVED]] / sums[..., WRITTEN[START]]),
    "r_parts": lambda sums, _: sums[..., WRITTEN[PARTS]] / sums[..., WRITTEN[OTHERS]],
}
"""The function of every statistic that is computed from sums."""


WRITTEN: dict[str, int] = {
    name: TENSORS + 1 + index
    for index, name in enumerate((*(stat for stat in STATS if stat not in STATISTICS), *HOOKED))
}
"""Columns that hold a statistic itself, or a sum of :data:`HOOKED`; by name. Those of several
micro-batches and processes add."""

SUMS = TENSORS + 1 + len(WRITTEN)
"""The number of columns."""


def written_by(stats: Sequence[str]) -> list[str]:
    read = {"stable_rank": ["spectral"], "swallowed": [LOST], "rho": [MOVED, START]}
    read["r_parts"] = [PARTS, OTHERS]
    needed = {*stats, *(name for stat in stats for name in read.get(stat, ()))}
    return [name for name in WRITTEN if name in needed]


def no_sums(shape: Sequence[int]) -> np.ndarray:
    """``[*shape, SUMS]`` before anything is measured: NaN in the written columns, else 0."""
    sums = np.zeros((*shape, SUMS))
    sums[..., TENSORS + 1 :] = np.nan
    sums[..., WRITTEN["descent"]] = 0.0
    return sums


def with_norms(sums: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The sums of single tensors, ``[..., SUMS]``, with their norms. Those of no elements don't
    count."""
    filled = sums.copy()
    filled[..., NORM] = np.sqrt(sums[..., SQUARE])
    filled[..., TENSORS] = count > 0
    return filled


def statistics(sums: np.ndarray, count: np.ndarray, stats: Sequence[str]) -> dict[str, np.ndarray]:
    """The given ``stats`` of rows of sums ``[..., SUMS]`` over ``count`` elements, ``[...]``."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        values = {}
        for stat in stats:
            function = STATISTICS.get(stat)
            values[stat] = function(sums, count) if function else sums[..., WRITTEN[stat]]
        return {stat: value.astype(np.float32) for stat, value in values.items()}


def combine(sums: np.ndarray) -> np.ndarray:
    """The sums of a union of tensors: ``[..., SUMS]`` without the first axis."""
    combined = sums.sum(0)
    combined[..., MAX] = sums[..., MAX].max(0)
    return combined


CHUNK, GPU_CHUNK = 2**20, 2**26
"""Elements of a chunk. On a CPU a chunk and a copy of it fit into the last-level cache; on a GPU a
chunk only limits temporary memory."""


def chunk_size(device: torch.device) -> int:
    return CHUNK if device.type == "cpu" else GPU_CHUNK


def chunks_of(x_kmF: Tensor) -> Iterator[Tensor]:
    """The rows of k matrices, some at a time: about :func:`chunk_size` elements."""
    cells, rows, features = x_kmF.shape
    at_a_time = max(1, chunk_size(x_kmF.device) // max(1, cells * features))
    yield from x_kmF.detach().split(at_a_time, 1) if rows else ()


class ScaledSums:
    """Sums over many tensors: of t, t^2 and t^4 with t = |x| / max |x|, and max |x|.

    The scale keeps fourth powers of small gradients within float32. Does not synchronise.

    On a GPU (``waits``), tensors of one shape are collected until they fill a chunk, because
    launching one operation per tensor takes longer than computing it. Until then they may not
    change.
    """

    def __init__(self, device: torch.device) -> None:
        self.waits = device.type != "cpu"
        self._waiting: dict[Any, list[tuple[int, Tensor]]] = defaultdict(list)
        self._elements = self._rows = 0
        self._order: list[int] = []
        self._none = torch.zeros(0, MAX + 1, device=device)
        self._found: list[Tensor] = []

    def of(self, chunks: Iterable[Tensor], real_km: Tensor | None = None) -> list[int]:
        """Take the rows of k matrices in chunks, or only those that are true in ``real_km``.
        Returns the number of the first of k rows of :meth:`found`, for each chunk."""
        firsts, start = [], 0
        for chunk in chunks:
            key = chunk.shape, chunk.dtype, real_km, 0 if real_km is None else start
            self._waiting[key].append((self._rows, chunk))
            firsts.append(self._rows)
            self._rows, start = self._rows + len(chunk), start + chunk.shape[1]
            self._elements += chunk.numel()
            if not self.waits or self._elements >= GPU_CHUNK:
                self.add_up()
        return firsts

    def found(self) -> tuple[Tensor, list[int]]:
        """All sums, ``[rows, 4]`` float32, and the number of each row."""
        self.add_up()
        found, self._found = [self._none, *self._found], []
        return torch.cat(found), self._order

    def add_up(self) -> None:
        for ((cells, rows, _), _, real_km, start), waiting in self._waiting.items():
            firsts, chunks = zip(*waiting, strict=True)
            self._order += [first + cell for first in firsts for cell in range(cells)]
            real = None if real_km is None else real_km[:, start : start + rows]
            absolute = chunks[0].abs()[None] if len(chunks) == 1 else torch.stack(chunks).abs_()
            self._found.append(_scaled(absolute, real))
        self._waiting.clear()
        self._elements = 0


def _scaled(t: Tensor, real_km: Tensor | None) -> Tensor:
    """The row of sums of each of ``S k`` matrices of absolute values, ``[S, k, m, F]``. Changes
    them, to read memory once: ``pow(4)``, ``isfinite`` and norms take several times as long."""
    if real_km is not None:
        t.masked_fill_(~real_km[..., None], 0.0)
    t = t.flatten(0, 1).flatten(1).float()
    largest, tiny = t.amax(1), torch.finfo(torch.float32).tiny
    t.mul_(largest[:, None].clamp_min(tiny).reciprocal_())
    return torch.stack([t.sum(1), t.square_().sum(1), t.square_().sum(1), largest], 1)


def unscaled(scaled: Tensor) -> Tensor:
    """The sums of |x|, x^2 and x^4, and max |x| of each chunk from :class:`ScaledSums`; float64."""
    largest = scaled[:, MAX:].double()
    powers = torch.cat([largest, largest**2, largest**4], 1)
    return torch.cat([scaled[:, :MAX] * powers, largest], 1)
