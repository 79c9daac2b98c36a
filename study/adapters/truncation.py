"""What a trained adapter does at a lower rank: its best approximation of rank k, layer by layer.

The best approximation of ``delta_w = gamma B A`` of rank k, in Frobenius and spectral norm alike, keeps its k largest
singular values (Eckart and Young 1936). They come from the small factors: with ``B = Q_B R_B`` and ``A^T = Q_A R_A``
the core ``R_B R_A^T`` has the singular values of ``B A``, and gamma, a number, leaves their order as it is. Per layer
two QRs and an SVD of ``[m, m]``, ``m = min(R, D, O)`` mostly; ``delta_w`` is never formed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from study.adapters.bank import LoraBank, LoraPair


def singular_factors(A_RD: Tensor, B_OR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``A': [m, D]``, ``B': [O, m]`` and the singular values ``s: [m]``, descending, of ``B A = B' A'``: the first k
    rows of A' and columns of B' multiply to its best approximation of rank k.

    The factors have the dtype given, the values float64, in which the work is done. An entry that is not finite makes
    all of it NaN.
    """
    if not (A_RD.isfinite().all() and B_OR.isfinite().all()):
        m = min(*A_RD.shape, len(B_OR))
        nan = [
            A_RD.new_full(shape, torch.nan) for shape in ((m, A_RD.shape[1]), (len(B_OR), m), (m,))
        ]
        return nan[0], nan[1], nan[2].double()
    Q_A, R_A = torch.linalg.qr(A_RD.double().mT)
    Q_B, R_B = torch.linalg.qr(B_OR.double())
    U, s, Vh = torch.linalg.svd(R_B @ R_A.mT, full_matrices=False)
    root = s.sqrt()  # on both sides: neither factor leaves float32 where the other is small
    return ((root[:, None] * Vh) @ Q_A.mT).to(A_RD.dtype), ((Q_B @ U) * root).to(B_OR.dtype), s


class Truncation:
    """The adapters of every bank, and how to cut them to a lower rank and back."""

    def __init__(self, banks: Sequence[LoraBank]) -> None:
        self.pairs: list[list[LoraPair]] = [bank.pairs for bank in banks]
        self.trained = [
            [(A.detach().clone(), B.detach().clone()) for A, B, _ in pairs] for pairs in self.pairs
        ]
        self.factors = [[singular_factors(A, B) for A, B in pairs] for pairs in self.trained]

    @torch.no_grad()
    def keep(self, rank: float) -> list[float]:
        """Cut every adapter to at most ``rank`` singular directions; per cell the share of delta_w's squared norm that
        is kept, the mean over layers (NaN where no layer has moved)."""
        for pairs, factors in zip(self.pairs, self.factors, strict=True):
            for (A_RD, B_OR, _), (A_mD, B_Om, _) in zip(pairs, factors, strict=True):
                k = int(min(rank, len(A_mD)))
                A_RD.zero_()[:k] = A_mD[:k]
                B_OR.zero_()[:, :k] = B_Om[:, :k]
        by_cell = zip(*self.factors, strict=True)
        return [
            float(torch.stack([_share(s, rank) for *_, s in layers]).nanmean())
            for layers in by_cell
        ]

    @torch.no_grad()
    def undo(self) -> None:
        """Every adapter as it was trained."""
        for pairs, trained in zip(self.pairs, self.trained, strict=True):
            for (A_RD, B_OR, _), (A, B) in zip(pairs, trained, strict=True):
                A_RD.copy_(A)
                B_OR.copy_(B)


@contextmanager
def truncating(banks: Sequence[LoraBank]) -> Iterator[Truncation]:
    """Inside, adapters can be cut to lower ranks; on leaving they are as they were, bit for bit.

    Holds the adapters twice more. The infinite-rank limit is cut like any other.
    """
    truncation = Truncation(banks)
    try:
        yield truncation
    finally:
        truncation.undo()


def _share(s: Tensor, rank: float) -> Tensor:
    """0 / 0, where nothing has moved, is NaN."""
    squares = s.square()
    return squares[: int(min(rank, len(s)))].sum() / squares.sum()
