"""The performance of a trained adapter at a lower rank: its best rank-k approximation, by layer.

The best rank-k approximation of ``delta_w = gamma B A``, in the Frobenius and in the spectral norm,
keeps the k largest singular values (Eckart and Young 1936). They are computed from the factors:
with ``B = Q_B R_B`` and ``A^T = Q_A R_A``, the core ``R_B R_A^T`` has the singular values of
``B A``. gamma does not change their order. This takes two QR decompositions and an SVD of a small
matrix per layer; ``delta_w`` is never formed.

Letters: ``R`` rank, ``D`` / ``O`` in / out features, ``m = min(R, D, O)``.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from study.adapters.bank import LoraBank, LoraPair


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


class Truncation:
    """Cuts the adapters of every bank to a lower rank, and restores them."""

    def __init__(self, banks: Sequence[LoraBank]) -> None:
        self.pairs: list[list[LoraPair]] = [bank.pairs for bank in banks]
        self.trained = [
            [(A.detach().clone(), B.detach().clone()) for A, B, _ in pairs] for pairs in self.pairs
        ]
        self.factors = [[singular_factors(A, B) for A, B in pairs] for pairs in self.trained]

    @torch.no_grad()
    def keep(self, rank: float) -> list[float]:
        """Cut adapters to at most ``rank`` directions. Returns, by cell, the share of the squared
        norm of delta_w that is kept: the mean over layers, NaN if it is 0 in all."""
        for pairs, factors in zip(self.pairs, self.factors, strict=True):
            for (A_RD, B_OR, _), (A_mD, B_Om, _) in zip(pairs, factors, strict=True):
                k = int(min(rank, A_mD.shape[-2]))
                A_RD.zero_()[..., :k, :] = A_mD[..., :k, :]
                B_OR.zero_()[..., :k] = B_Om[..., :k]
        shares = []
        for layers in zip(*self.factors, strict=True):
            squares = [s.square() for *_, s in layers]  # a share is 0 / 0 if all values are 0
            kept = [each[..., : int(min(rank, each.shape[-1]))].sum() for each in squares]
            of_layers = [part / each.sum() for part, each in zip(kept, squares, strict=True)]
            shares.append(float(torch.stack(of_layers).nanmean()))
        return shares

    @torch.no_grad()
    def undo(self) -> None:
        for pairs, trained in zip(self.pairs, self.trained, strict=True):
            for (A_RD, B_OR, _), (A, B) in zip(pairs, trained, strict=True):
                A_RD.copy_(A)
                B_OR.copy_(B)


@contextmanager
def truncating(banks: Sequence[LoraBank]) -> Iterator[Truncation]:
    """Context manager: adapters can be cut to lower ranks. They are restored bit for bit on
    exit."""
    truncation = Truncation(banks)
    try:
        yield truncation
    finally:
        truncation.undo()
