"""The largest singular value of a product of matrices, from products with a few columns: no matrix is decomposed.

A product is reduced to a small core with the same largest singular value: exactly where the rank is small, otherwise by
block Krylov iteration with a Rayleigh-Ritz step over all its blocks (Musco and Musco 2015, arXiv 1504.05477, algorithm
2). The cores of many layers are then taken together. Of a trained ``gamma B A`` the relative error is under 1e-5 (the
root's, mostly); of a product of random matrices, whose spectrum has no gap, under 1e-4 up to ``[1536, 1024] @ [1024,
576]``.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK, BLOCKS = 16, 8
SMALL = BLOCK * (BLOCKS - 1)
"""The rank up to which a core is exact: blocks of that many columns would span every row anyway."""
SQUARINGS = 20
"""The trace's 2^20-th root is within a factor of 128^(2^-20), 5e-6, of the largest eigenvalue."""


class Core(NamedTuple):
    """``scale * sqrt(largest eigenvalue of square_mm)`` is a largest singular value: float64, both on the device."""

    scale: Tensor
    square_mm: Tensor


def core(*factors: Tensor) -> Core:
    """Of ``factors[0] @ factors[1] @ ...``, float32 matrices.

    Two factors of rank up to ``SMALL`` cost their Gram matrices; others at most ``60 m n BLOCK`` FLOPs per ``[m, n]``
    factor, from a start that is drawn from a fixed generator.
    """
    if len(factors) == 2 and factors[0].shape[1] <= SMALL:
        return _small_core(*factors)
    return _krylov_core(*factors)


def largest_singular_values(cores: Sequence[Core]) -> list[Tensor]:
    """One float64 scalar a core, not read on the host. A non-finite entry gives NaN, zero gives 0."""
    found: dict[int, Tensor] = {}
    by_size = sorted(range(len(cores)), key=lambda index: cores[index].square_mm.shape)
    for _, group in groupby(by_size, key=lambda index: cores[index].square_mm.shape):
        indices = list(group)
        roots = _largest_eigenvalues(
            torch.stack([cores[index].square_mm for index in indices])
        ).sqrt()
        found |= {
            index: cores[index].scale * root for index, root in zip(indices, roots, strict=True)
        }
    return [found[index] for index in range(len(cores))]


def _small_core(B_OR: Tensor, A_RD: Tensor) -> Core:
    """``(B A)(B A)^T`` and ``B^T B A A^T``, ``[R, R]``, have the same eigenvalues but for zeros."""
    scales = [_largest(factor) for factor in (B_OR, A_RD)]
    B_OR, A_RD = (
        B_OR / scales[0],
        A_RD / scales[1],
    )  # their squares would leave float32 where B has hardly moved
    square_RR = (B_OR.mT @ B_OR).double() @ (A_RD @ A_RD.mT).double()
    return Core(scales[0].double() * scales[1].double(), square_RR)


def _krylov_core(*factors: Tensor) -> Core:
    d, rank = factors[-1].shape[1], min(min(factor.shape) for factor in factors)
    count = min(
        BLOCKS, -(-d // BLOCK), 1 + -(-rank // BLOCK)
    )  # one more than span the rows: the first is random
    start = torch.randn(d, min(BLOCK, d), generator=torch.Generator().manual_seed(0))
    Q_db = torch.linalg.qr(start.to(factors[0].device))[0]
    blocks = [Q_db]
    while len(blocks) < count:
        image = _product(Q_db, factors)
        Q_db = torch.linalg.qr(_transposed(image / _largest(image), factors))[0]
        blocks.append(Q_db)
    basis = torch.linalg.qr(torch.cat(blocks, dim=1))[0]
    image = _product(basis, factors)
    largest = _largest(image)
    image = image / largest
    return Core(largest.double(), (image.mT @ image).double())


def _largest(x: Tensor) -> Tensor:
    return x.abs().amax().clamp_min(torch.finfo(x.dtype).tiny)


def _product(Q: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
    for factor in reversed(factors):
        Q = factor @ Q
    return Q


def _transposed(Q: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
    for factor in factors:
        Q = factor.mT @ Q
    return Q


def _largest_eigenvalues(squares_Lmm: Tensor) -> Tensor:
    """Of small products of positive semidefinite matrices, ``[L]``, by repeated squaring.

    ``eigvals`` would wait for the device, and raise where an entry is not finite.
    """
    log_L = torch.zeros(len(squares_Lmm), dtype=squares_Lmm.dtype, device=squares_Lmm.device)
    for k in range(SQUARINGS):
        trace_L = squares_Lmm.diagonal(dim1=-2, dim2=-1).sum(-1)
        log_L = log_L + trace_L.log() / 2**k
        squares_Lmm = (
            squares_Lmm / trace_L.clamp_min(torch.finfo(squares_Lmm.dtype).tiny)[:, None, None]
        )
        squares_Lmm = squares_Lmm @ squares_Lmm
    return log_L.exp()
