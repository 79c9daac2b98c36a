"""Rank-free SGD: train an adapter of any rank at a cost that does not depend on the rank.

Let ``Z = [A0, B0^T]``, ``[R, D + O]``, be the init of an adapter. With ``G = dL/dW``, the gradients
of A and of B^T are ``gamma B^T G`` and ``gamma A G^T``: at first, combinations of the columns of Z.
Every rule that is linear in weights and gradients (SGD, momentum, Nesterov, coupled and decoupled
decay, LoRA+, any schedule) preserves this: ``A = Z P`` and ``B^T = Z Q`` throughout. The rank then
enters only through the Gram matrix ``S = Z^T Z``: ``delta_w = gamma Q^T S P``, and the squared
gradient norm that clipping needs is ``gamma^2 <Q G, S Q G>`` plus its counterpart.

This module writes P and Q in orthonormal coordinates. Let ``Z = U F``, where U has orthonormal
columns and ``F^T F = S``. Then

    A' = U^T A = F P,    B' = B U = (F Q)^T

are an adapter of rank ``m <= D + O`` with the same ``delta_w``, gradient norms and updates as A and
B. U cancels everywhere. So **under SGD, an adapter of rank R is equivalent to one of rank m** with
the same SGD and the gamma of rank R. It starts from the two halves of a square root of S. It has at
most D rows for Init[A] and O for Init[B]. It runs in the ordinary bank, loop and optimizer, and
costs as much as rank m. This does not hold for sign-like rules: the sign of ``U^T g`` is not U^T
times the sign of g.

For ranks too large to hold, F is drawn without Z. For a Gaussian Z it is Bartlett's triangle
(Bartlett 1933; Anderson 2003, theorem 7.2.1): a chi-distributed diagonal, normal entries above it.
Entries of another kurtosis change, to leading order in 1/R, only the variance of the diagonal of S:
``(kurtosis + 2) R v^2``, 0.4 times the Wishart value for uniform entries.

Letters: ``C`` columns of Z that are not 0, ``m`` the reduced rank.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from study.adapters.bank import AdapterSpec, LoraBank, LoraPair, initial_pair
from study.adapters.inits import generator_for
from study.vocabulary.inits import INITS

HELD = 2**14
"""Up to this rank, and up to 8 rows per feature, a bank draws the whole adapter; above it, a Gram
matrix."""


def equivalent_pair(A_RD: Tensor, B_OR: Tensor) -> tuple[Tensor, Tensor]:
    """``A': [m, D]`` and ``B': [O, m]`` with the same delta_w as A and B at every step of SGD.

    ``m = min(R, C)``: a factor that is 0 adds no column to Z. The factors keep their dtype; the QR
    decomposition is in float64.
    """
    columns = [Z.double() for Z in (A_RD, B_OR.mT) if Z.any()]
    if not columns:
        return A_RD[:1], B_OR[:, :1]
    F = torch.linalg.qr(torch.cat(columns, dim=1), mode="r").R.to(A_RD.dtype)
    d, o = A_RD.shape[1], B_OR.shape[0]
    A_mD = F[:, :d] if A_RD.any() else F.new_zeros(len(F), d)
    B_mO = F[:, -o:] if B_OR.any() else F.new_zeros(len(F), o)
    return A_mD.contiguous(), B_mO.mT.contiguous()


def sample_factor(
    rank: int, std_C: NDArray[np.float64], kurtosis: float, stream: np.random.Generator
) -> NDArray[np.float64]:
    """``F: [C, C]``, upper triangular, with ``F^T F`` distributed as ``Z^T Z``.

    ``Z: [rank, C]`` has independent entries of standard deviations ``std_C`` and of this excess
    ``kurtosis``. Exact for normal entries (0) at ``rank >= C``; for others to leading order in
    1/rank, at ``rank >= 8 C``. Raises ``ValueError`` for a lower rank. ``C^3 / 3`` FLOPs at any
    rank.
    """
    count = len(std_C)
    least = count if kurtosis == 0 else 8 * count
    if rank < least:
        raise ValueError(
            f"sampling a Gram matrix of {count} columns needs rank {least} or more, not {rank}: "
            "draw the whole adapter instead"
        )
    F_CC = np.triu(stream.standard_normal((count, count)), 1)
    F_CC[np.diag_indices(count)] = np.sqrt(stream.chisquare(rank - np.arange(count)))
    if kurtosis != 0:
        S_CC = F_CC.T @ F_CC
        diagonal = S_CC[np.diag_indices(count)]
        S_CC[np.diag_indices(count)] = rank + np.sqrt((kurtosis + 2) / 2) * (diagonal - rank)
        F_CC = np.linalg.cholesky(S_CC).T.astype(np.float64)
    return F_CC * std_C


def sample_pair(spec: AdapterSpec, layer: str, d: int, o: int) -> tuple[Tensor, Tensor]:
    """A reduced adapter equivalent to one of ``spec.rank``, which is never formed.

    float32, on the CPU. The draw is keyed by seed, layer and rank. It has the distribution of
    :func:`study.adapters.bank.initial_pair`, but not its values. Raises ``ValueError`` for a rank
    too low to sample (:func:`sample_factor`).
    """
    init = INITS[spec.init]
    rank, fan = int(spec.rank), d if init.drawn == "A" else o
    if init.orthonormal:
        F_CC = np.eye(fan)
    else:
        key = generator_for(spec.seed, f"{layer}/gram/{rank}").initial_seed() % 2**64
        std = init.variance(fan, rank) ** 0.5
        F_CC = sample_factor(rank, np.full(fan, std), init.kurtosis, np.random.default_rng(key))
    factor = torch.from_numpy(F_CC).float()
    if init.drawn == "A":
        return factor, torch.zeros(o, fan)
    return torch.zeros(fan, d), factor.mT.contiguous()


class RankFreeBank(LoraBank):
    """A bank of adapters of rank ``min(R, D)`` (Init[B]: O) that follow those of rank R under SGD.

    Up to rank ``HELD`` it reduces the adapter that a :class:`LoraBank` would draw: the same run
    within rounding. Above, it draws one of the same distribution. Probes measure the reduced
    factors. Their Frobenius norms are those of A and B; their means per entry are not.
    """

    def drawn(self, spec: AdapterSpec, d: int, o: int) -> LoraPair:
        fan = d if INITS[spec.init].drawn == "A" else o
        if spec.rank <= max(HELD, 8 * fan):
            pair = equivalent_pair(*initial_pair(spec, self.layer, d, o))
        else:
            pair = sample_pair(spec, self.layer, d, o)
        return LoraPair(*pair, spec.gamma)
