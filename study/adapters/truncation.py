"""The performance of a trained adapter at a lower rank: its best rank-k approximation, by layer.

The best rank-k approximation of ``delta_w = gamma B A``, in the Frobenius and in the spectral norm,
keeps the k largest singular values (Eckart and Young 1936). They are computed from the factors:
with ``B = Q_B R_B`` and ``A^T = Q_A R_A``, the core ``R_B R_A^T`` has the singular values of
``B A``. gamma does not change their order. This takes two QR decompositions and an SVD of a small
matrix per layer; ``delta_w`` is never formed.

Letters: ``R`` rank, ``D`` / ``O`` in / out features, ``m = min(R, D, O)``.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from study.adapters.bank import LoraBank


def singular_factors(A_RD: Tensor, B_OR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``A': [m, D]``, ``B': [O, m]`` with ``B' A' = B A``, and its singular values ``s: [m]``.

    The values are in descending order. The first k columns of B' times the first k rows of A' are
    the best rank-k approximation. Computed in float64; the factors keep their dtype. If an entry is
    not finite, every result is NaN. Both factors may have a first dimension, the expert.
    """
    if not (A_RD.isfinite().all() and B_OR.isfinite().all()):
        each, d, o = A_RD.shape[:-2], A_RD.shape[-1], B_OR.shape[-2]
        m = min(*A_RD.shape[-2:], o)
        nan = [A_RD.new_full((*each, *shape), torch.nan) for shape in ((m, d), (o, m), (m,))]
        return nan[0], nan[1], nan[2].double()
    Q_A, R_A = torch.linalg.qr(A_RD.double().mT)
    Q_B, R_B = torch.linalg.qr(B_OR.double())
    U, s, Vh = torch.linalg.svd(R_B @ R_A.mT, full_matrices=False)
    root = s.sqrt()  # on both sides, so that neither factor leaves the range of float32
    A_mD, B_Om = (root[..., :, None] * Vh) @ Q_A.mT, (Q_B @ U) * root[..., None, :]
    return A_mD.to(A_RD.dtype), B_Om.to(B_OR.dtype), s


@contextmanager
def truncating(banks: Sequence[LoraBank]) -> Iterator[Callable[[float], list[float]]]:
    """Context manager: yields ``keep(rank)``, which cuts all adapters to at most ``rank``
    directions. It returns the share of the squared norm of delta_w that each cell keeps: the mean
    over layers, NaN if delta_w is 0 in all. Adapters are restored bit for bit on exit.
    """
    pairs = [pair for bank in banks for pair in bank.pairs]
    trained = [(A.detach().clone(), B.detach().clone()) for A, B, _ in pairs]
    factors = [singular_factors(A, B) for A, B in trained]

    def keep(rank: float) -> list[float]:
        shares = []
        for (A_RD, B_OR, _), (A_mD, B_Om, s) in zip(pairs, factors, strict=True):
            k = int(min(rank, s.shape[-1]))
            with torch.no_grad():
                A_RD.zero_()[..., :k, :] = A_mD[..., :k, :]
                B_OR.zero_()[..., :k] = B_Om[..., :k]
            shares.append(s[..., :k].square().sum() / s.square().sum())
        of_cells = torch.stack(shares).view(len(banks), -1).mT.contiguous()
        return [float(of_cell.nanmean()) for of_cell in of_cells]

    try:
        yield keep
    finally:
        for (A_RD, B_OR, _), (A, B) in zip(pairs, trained, strict=True):
            A_RD.data.copy_(A)
            B_OR.data.copy_(B)
