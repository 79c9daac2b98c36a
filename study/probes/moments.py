"""The sums that every statistic comes from, and the statistics that come from them.

A tensor is read once on its device and leaves a few numbers there, which come to the host all at once: they add over
micro-batches, over A and B, and over layers; roots and means are taken at the end. Statistics that are no function of
such sums take a column of their own, written once a step.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from study.vocabulary.quantities import ALIGNMENTS

ABS, SQUARE, FOURTH, MAX, DESCENT = range(5)
"""Columns of a row of sums: of |x|, of x^2, of x^4; the largest |x|; minus <gradient, update>."""
AS_WRITTEN = {stat: DESCENT + 1 + i for i, stat in enumerate(("spectral", *ALIGNMENTS, "rho"))}
"""Columns that hold a statistic itself; NaN until it is written."""
SUMS = DESCENT + 1 + len(AS_WRITTEN)


def scaled_sums(x: Tensor, padding: Tensor | None = None) -> Tensor:
    """``[4]`` float32 on the device of ``x``: the sums of t, t^2 and t^4, where t = |x| / max |x|, and max |x|.

    Scaled, because fourth powers of small gradients would leave float32. ``padding``: indices of rows that are left
    out, whatever they hold. A few passes over memory, much cheaper than ``pow(4)`` or ``isfinite``: an element that is
    not finite shows in the first sum. Nothing synchronises.
    """
    t = x.detach().float().abs()
    if (
        padding is not None
    ):  # 0 adds nothing to a sum; copying the other rows out takes a third of the whole time
        t.index_fill_(0, padding, 0.0)
    t = t.flatten()
    largest = t.amax()
    first = t.mul_(1 / largest.clamp_min(torch.finfo(torch.float32).tiny)).sum()
    second = t.square_().sum()
    return torch.stack([first, second, torch.dot(t, t), largest])


def unscaled(scaled: np.ndarray) -> np.ndarray:
    """``[ABS, SQUARE, FOURTH, MAX]`` from what :func:`scaled_sums` says, ``[..., 4]`` float64."""
    largest = scaled[..., 3:].astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.concatenate([scaled[..., :3] * largest ** [1, 2, 4], largest], axis=-1)


class Leaving:
    """A tensor on its way to the host; the device goes on meanwhile."""

    def __init__(self, x: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        self._on_host = x
        if x.device.type == "cuda":
            self._on_host = torch.empty_like(x, device="cpu", pin_memory=True).copy_(
                x, non_blocking=True
            )
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(x.device))

    @property
    def arrived(self) -> bool:
        """Whether :meth:`numpy` would not wait."""
        return self._copied is None or self._copied.query()

    def numpy(self) -> np.ndarray:
        """The numbers, waited for."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._on_host.numpy()


class Ledger:
    """Numbers of a step by place, an index into ``shape``: entered as they come on the device, read by one copy.

    :meth:`send` begins that copy, after which nothing is entered; :meth:`read` waits for it.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self._moments: list[tuple[tuple[int, ...], Tensor, int]] = []
        self._written: list[tuple[tuple[int, ...], Tensor]] = []
        self._leaving: list[Leaving] = []

    def add(self, place: tuple[int, ...], scaled: Tensor, count: int) -> None:
        """Enter the :func:`scaled_sums` of ``count`` elements, beside those that are there already."""
        self._moments.append((place, scaled, count))

    def write(self, place: tuple[int, ...], column: int, value: Tensor) -> None:
        """Enter a number that stands for itself, a scalar: ``DESCENT`` or a column of ``AS_WRITTEN``."""
        self._written.append(((*place, column), value))

    def send(self) -> None:
        """Begin to copy everything that was entered off the device."""
        if self._moments:
            self._leaving.append(Leaving(torch.stack([scaled for _, scaled, _ in self._moments])))
        if self._written:
            self._leaving.append(
                Leaving(torch.stack([value.double() for _, value in self._written]))
            )

    @property
    def arrived(self) -> bool:
        """Whether what was sent is on the host."""
        return all(part.arrived for part in self._leaving)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """All sums, ``[*shape, SUMS]`` float64, NaN where a column was not written; and counts, ``[*shape]``."""
        sums, counts = np.zeros((*self.shape, SUMS)), np.zeros(self.shape)
        sums[..., DESCENT + 1 :] = np.nan
        leaving = iter(self._leaving)
        if self._moments:
            places, _, each = zip(*self._moments, strict=True)
            index, moments = tuple(np.array(places).T), unscaled(next(leaving).numpy())
            np.add.at(sums[..., :MAX], index, moments[:, :MAX])
            np.maximum.at(sums[..., MAX], index, moments[:, MAX])
            np.add.at(counts, index, each)
        if self._written:
            places, _ = zip(*self._written, strict=True)
            sums[tuple(np.array(places).T)] = next(leaving).numpy()
        return sums, counts


def combine(sums: np.ndarray, axis: int) -> np.ndarray:
    """Sums of a union of tensors: they add over ``axis``, maxima max. ``[..., SUMS] -> [..., SUMS]`` less ``axis``."""
    combined = sums.sum(axis)
    combined[..., MAX] = sums[..., MAX].max(axis)
    return combined


def statistics(
    sums: np.ndarray, count: np.ndarray | float, stats: Sequence[str]
) -> dict[str, np.ndarray]:
    """The asked-for ``stats`` of rows of sums ``[..., SUMS]`` over ``count`` elements, float32; NaN where not measured.

    ``mean_abs`` E|x|; ``rms`` sqrt(E x^2); ``m4`` (E x^4)^(1/4); ``max_abs``; ``norm`` Frobenius; ``descent``
    -<gradient, update>, only where an update was measured; ``nonfinite`` 1 where any element is, else 0;
    ``stable_rank`` (norm / spectral)^2; the others as they were written.
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        every = {
            "mean_abs": sums[..., ABS] / count,
            "rms": np.sqrt(sums[..., SQUARE] / count),
            "m4": (sums[..., FOURTH] / count) ** 0.25,
            "max_abs": sums[..., MAX],
            "norm": np.sqrt(sums[..., SQUARE]),
            "descent": sums[..., DESCENT],
            "nonfinite": np.where(np.isfinite(sums[..., ABS]), 0.0, 1.0),
            "stable_rank": sums[..., SQUARE] / sums[..., AS_WRITTEN["spectral"]] ** 2,
            **{stat: sums[..., column] for stat, column in AS_WRITTEN.items()},
        }
        return {stat: every[stat].astype(np.float32) for stat in stats}
