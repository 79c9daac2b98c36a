"""``gamma B A`` of every layer: computed once per step.

A step that merges the adapters into the weights computes it anyway, and passes it to
:class:`study.adapters.contraction.Listeners`. Otherwise the probe computes it.

Its largest singular value needs no decomposition of a large matrix. A product is reduced to a small
core with the same value: exactly for a low rank, otherwise by block Krylov iteration with a
Rayleigh-Ritz step over all its blocks (Musco and Musco 2015, arXiv 1504.05477, algorithm 2). The
cores of many layers are then solved together. The relative error for a trained ``gamma B A`` is
below 1e-5, most of it from the root. For a product of random matrices, whose spectrum has no gap,
it is below 1e-4 up to ``[1536, 1024] @ [1024, 576]``.

Letters: ``b`` columns of a block, ``m`` size of a core, ``L`` cores of one size.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from study.probes.measurements import Measurements, in_backward
from study.probes.sites import Product
from study.probes.spans import ranked
from study.probes.statistics import written_by

BLOCK, BLOCKS = 16, 8
SMALL = BLOCK * (BLOCKS - 1)
"""The rank up to which a core is exact: this many columns span all rows anyway."""
SQUARINGS = 20
"""The 2^20-th root of the trace is within a factor of 128^(2^-20) = 1 + 5e-6 of the largest
eigenvalue."""


class Core(NamedTuple):
    """A largest singular value is ``scale * sqrt(largest eigenvalue of square_mm)``, in float64."""

    scale: Tensor
    square_mm: Tensor


def core(*factors: Tensor) -> Core:
    """The core of ``factors[0] @ factors[1] @ ...``, float32 matrices.

    Two factors of rank up to ``SMALL`` cost their Gram matrices. Others cost at most
    ``60 p q BLOCK`` FLOPs per ``[p, q]`` factor; the iteration starts from a fixed random block.
    """
    if len(factors) == 2 and factors[0].shape[1] <= SMALL:
        # B^T B A A^T has the eigenvalues of (B A)(B A)^T, except for zeros.
        scales = [_largest(factor) for factor in factors]
        # The squares of a B that has hardly moved would underflow float32.
        B_OR, A_RD = (factor / scale for factor, scale in zip(factors, scales, strict=True))
        square_RR = (B_OR.mT @ B_OR).double() @ (A_RD @ A_RD.mT).double()
        return Core(scales[0].double() * scales[1].double(), square_RR)
    d, rank = factors[-1].shape[1], min(min(factor.shape) for factor in factors)
    # One block more than needed to span the rows, because the first is random.
    count = min(BLOCKS, -(-d // BLOCK), 1 + -(-rank // BLOCK))
    start = torch.randn(d, min(BLOCK, d), generator=torch.Generator().manual_seed(0))
    blocks = [start.to(factors[0].device, non_blocking=True)]
    while len(blocks) < count:
        image = _product(blocks[-1], factors)
        image = image / _largest(image)
        for factor in factors:
            image = factor.mT @ image
        blocks.append(image / image.norm(dim=0).clamp_min(torch.finfo(image.dtype).tiny))
    # The only decomposition: they are slow on a GPU, and the largest value needs no others.
    basis = torch.linalg.qr(torch.cat(blocks, dim=1))[0]
    image = _product(basis, factors)
    largest = _largest(image)
    image = image / largest
    return Core(largest.double(), (image.mT @ image).double())


def largest_singular_values(cores: Sequence[Core]) -> list[Tensor]:
    """One float64 scalar per core, on the device: NaN for a non-finite entry."""
    found: dict[int, Tensor] = {}
    by_size = sorted(range(len(cores)), key=lambda index: cores[index].square_mm.shape)
    for _, group in groupby(by_size, key=lambda index: cores[index].square_mm.shape):
        indices = list(group)
        roots = _largest_eigenvalues(torch.stack([cores[i].square_mm for i in indices])).sqrt()
        found |= {i: cores[i].scale * root for i, root in zip(indices, roots, strict=True)}
    return [found[index] for index in range(len(cores))]


def _largest(x: Tensor) -> Tensor:
    return x.abs().amax().clamp_min(torch.finfo(x.dtype).tiny)


def _product(Q: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
    for factor in reversed(factors):
        Q = factor @ Q
    return Q


def _largest_eigenvalues(squares_Lmm: Tensor) -> Tensor:
    """``[L]``, for products of two positive semidefinite matrices, by repeated squaring:
    ``eigvals`` would wait for the device, and raise an error for a non-finite entry."""
    log_L = torch.zeros(len(squares_Lmm), dtype=squares_Lmm.dtype, device=squares_Lmm.device)
    for k in range(SQUARINGS):
        trace_L = squares_Lmm.diagonal(dim1=-2, dim2=-1).sum(-1)
        log_L = log_L + trace_L.log() / 2**k
        squares_Lmm = (
            squares_Lmm / trace_L.clamp_min(torch.finfo(squares_Lmm.dtype).tiny)[:, None, None]
        )
        squares_Lmm = squares_Lmm @ squares_Lmm
    return log_L.exp()


class DeltaW:
    """Measures the site ``delta_w``; of experts without statistics of singular values."""

    def __init__(self, measurements: Measurements) -> None:
        self.measurements = measurements
        self.is_wanted = "delta_w" in measurements.wanted
        self._needs_largest = "spectral" in written_by(measurements.stats)
        self._needs_rank = "effective_rank" in measurements.stats
        self._measured: set[tuple[int, int]] = set()
        """By layer and first cell."""
        self._cores: dict[tuple[int, int], Core] = {}
        """By layer and cell."""

    def measure(self) -> None:
        for index, layer in enumerate(self.measurements.layers):
            firsts = [stack.first for stack in layer.stacks()]
            if any(self._wants(index, first) for first in firsts):
                for stack in layer.stacks(whole=True):
                    self._measure(index, Product(stack))
        values = largest_singular_values(list(self._cores.values()))
        for (index, cell), value in zip(self._cores, values, strict=True):
            self.measurements.write("delta_w", index, cell, lambda x: {"spectral": x}, value)
        self._cores = {}

    def _wants(self, layer: int, first: int) -> bool:
        of_plain_lora = not self.measurements.layers[layer].variant
        return self.is_wanted and of_plain_lora and (layer, first) not in self._measured

    def take(self, layer: int, first: int, BA_kOD: Tensor) -> None:
        if not in_backward():  # not the second run of a checkpointed layer
            stacks = self.measurements.layers[layer].stacks()
            self._measure(layer, Product(next(s for s in stacks if s.first == first), BA_kOD))

    def _measure(self, layer: int, product: Product) -> None:
        measurements, stack = self.measurements, product.stack
        if not self._wants(layer, stack.first):
            return
        self._measured.add((layer, stack.first))
        with measurements.measuring(), measurements.of_pass(None):
            if product.is_compact and product.BA_kOD is None:
                product = Product(stack, stack.B_kOR.float() @ stack.A_kRD.float())
            measurements.add("product", layer, stack, product)
            if measurements.layers[layer].experts:
                return
            for cell, (A_RD, B_OR, gamma) in stack.pairs():
                # From the product or from its factors, whichever is smaller.
                factors = [B_OR.float(), A_RD.float()]
                if product.is_compact and product.BA_kOD is not None:
                    factors = [product.BA_kOD[cell - stack.first]]
                if self._needs_rank:
                    measurements.write("delta_w", layer, cell, ranked, *factors)
                if self._needs_largest:
                    scale, square_mm = core(*factors)
                    self._cores[layer, cell] = Core(scale * gamma, square_mm)
