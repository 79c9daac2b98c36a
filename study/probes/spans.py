"""How many directions the factors use, and which part of the weight gradient A can read.

- ``effective_rank``: the participation ratio of the singular values s of A, of B or of
  ``gamma B A``, ``(sum s^2)^2 / sum s^4``. It is the trace of a Gram matrix, squared, over the
  trace of its square, so it needs no decomposition: ``2 R^2 (D + O)`` FLOPs in float64.
- ``row_share``: the share of the energy of G in the row space of A, ``|G P|^2 / |G|^2``. G is
  ``dL/dW`` of the measured batch, ``[O, D]``, with inputs before dropout, and P is the projection
  on the rows of A. ``gamma G P`` is what the gradient of B sees. Of N tokens it costs ``2 N D O``
  FLOPs and ``4 D O`` bytes per layer and cell until the update, and the eigenvectors of a matrix of
  the smaller side of A, in float64. On a GPU it waits for them.

Of experts neither is measured.
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from study.probes.alignment import weight_gradient
from study.probes.measurements import Measurements


class Spans:
    """Measures ``effective_rank`` of A and of B, and ``row_share`` of A."""

    def __init__(self, measurements: Measurements) -> None:
        self.measurements = measurements
        stats, wanted = measurements.stats, measurements.wanted
        self.factors = {"A", "B"} & wanted if "effective_rank" in stats else set()
        self.shares = "row_share" in stats and "A" in wanted
        self._gradients: dict[tuple[int, int], Tensor] = {}
        """By pass and layer, ``[K, O, D]``."""

    def add(self, of_pass: int, layer: int, x_KND: Tensor, dy_KNO: Tensor) -> None:
        """Keep the weight gradient of a layer's inputs and output gradients in one pass."""
        with self.measurements.measuring():
            G_KOD, before = weight_gradient(x_KND, dy_KNO), self._gradients.get((of_pass, layer))
            self._gradients[of_pass, layer] = G_KOD if before is None else before + G_KOD

    def forget(self, passes: Collection[int]) -> None:
        """Drop the weight gradients of passes that the update does not use."""
        kept = self._gradients.items()
        self._gradients = {place: G_KOD for place, G_KOD in kept if place[0] not in passes}

    def measure(self, total: Callable[[Tensor], Tensor]) -> None:
        """Measure the factors as they are. ``total``: the sum of a tensor over the processes that
        divide a batch."""
        if not (self.factors or self.shares):
            return
        for index, layer in enumerate(self.measurements.layers):
            if layer.experts:
                continue
            parts = [G_KOD for (_, place), G_KOD in self._gradients.items() if place == index]
            with self.measurements.measuring():
                G_KOD = total(torch.stack(parts).sum(0)) if parts else None
            for stack in layer.stacks(whole=True):
                for cell, (A_RD, B_OR, _) in stack.pairs():
                    for site, factor in (("A", A_RD), ("B", B_OR)):
                        if site in self.factors:
                            self.measurements.write(site, index, cell, ranked, factor)
                    if G_KOD is not None:
                        self.measurements.write("A", index, cell, shared, G_KOD[cell], A_RD)
        self._gradients = {}


def ranked(*factors: Tensor) -> dict[str, Tensor]:
    """``effective_rank`` of a matrix, or of the product of two, a float64 scalar; NaN for 0."""
    left, *right = (factor.double() for factor in factors)
    # B^T B A A^T has the eigenvalues of (B A)(B A)^T, except for zeros.
    square = left.mT @ left @ (right[0] @ right[0].mT) if right else _small_gram(left)
    return {"effective_rank": square.trace() ** 2 / (square * square.mT).sum()}


def shared(G_OD: Tensor, A_RD: Tensor) -> dict[str, Tensor]:
    """``row_share``, a float64 scalar: 0 if A is 0, NaN if G is 0 or for a non-finite entry."""
    G_OD, A_RD = G_OD.double(), A_RD.double()
    gram = _small_gram(A_RD)
    # eigh raises an error for a non-finite entry.
    eigenvalues, vectors = torch.linalg.eigh(gram.nan_to_num(0.0, 0.0, 0.0))
    # Below this a direction of A is rounding: numpy's matrix_rank of float32.
    least = max(A_RD.shape) * torch.finfo(torch.float32).eps
    used = eigenvalues > eigenvalues[-1] * least**2
    if A_RD.shape[0] < A_RD.shape[1]:
        vectors = A_RD.mT @ (vectors * eigenvalues.rsqrt().where(used, 0.0))
    inside = (G_OD @ vectors).square().sum(0).where(used, 0.0).sum()
    share = inside / G_OD.square().sum()
    return {"row_share": share.where(gram.isfinite().all(), torch.nan)}


def _small_gram(x: Tensor) -> Tensor:
    """The Gram matrix of the smaller side, with the squares of all singular values."""
    small = x if x.shape[0] <= x.shape[1] else x.mT
    return small @ small.mT
