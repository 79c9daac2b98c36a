"""Rank-free SGD: an adapter of any rank, trained at a cost that does not depend on the rank.

Let ``Z = [A0, B0^T]``, ``[R, D + O]``, be an adapter's init. The gradients of A and of B^T are ``gamma B^T G`` and
``gamma A G^T`` (``G = dL/dW``), sums of columns of Z to begin with, and every rule that is linear in weights and
gradients (SGD, momentum, Nesterov, coupled and decoupled decay, LoRA+, any schedule) keeps them so: ``A = Z P`` and
``B^T = Z Q`` for good. All that is seen of the rank is then the Gram matrix ``S = Z^T Z``: ``delta_w = gamma Q^T S P``,
and the squared gradient norm that clipping asks for is ``gamma^2 <Q G, S Q G>`` and the like.

Here P and Q stand in orthonormal coordinates. With ``Z = U F``, U having orthonormal columns and ``F^T F = S``,

    A' = U^T A = F P,    B' = B U = (F Q)^T,

are themselves an adapter, of rank ``m <= D + O``, whose ``delta_w``, gradients, norms and updates are those of A and B,
with no S in sight: U drops out of all of them. So **an adapter of rank R under SGD is one of rank m under the same SGD,
at rank R's gamma, that begins at the two halves of a square root of S**: at most D rows for Init[A], O for Init[B]. It
runs in the ordinary bank, loop and optimizer, and costs what rank m costs. Not so under sign-like rules: the sign of
``U^T g`` is not U^T times the sign of g.

For ranks that no machine can hold, F is drawn without Z. A Gaussian Z has Bartlett's triangle as its F (Bartlett 1933;
Anderson 2003, theorem 7.2.1): chi-distributed diagonal, normal above it. Entries of another kurtosis change one thing
to leading order in 1/R, the variance of S's diagonal: ``(kurtosis + 2) R v^2``, for uniform entries 0.4 of Wishart's.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from study.adapters.bank import AdapterSpec, LoraBank, LoraPair, generator_for, initial_pair
from study.vocabulary.inits import INITS

HELD = 2**14
"""Up to this rank (and up to 8 rows a feature) a bank draws the very adapter of that rank; above it draws a Gram."""


def equivalent_pair(A_RD: Tensor, B_OR: Tensor) -> tuple[Tensor, Tensor]:
    """``A': [m, D]``, ``B': [O, m]`` that take the same path under SGD as ``A``, ``B``: ``m = min(R, columns of Z)``.

    A factor that is all zero adds no column. The dtype is the given one; the triangle is taken in float64.
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
    """``F: [C, C]``, upper triangular, as if from ``[rank, C]`` iid draws Z of standard deviations ``std_C``: F^T F is
    distributed as Z^T Z.

    ``kurtosis``: the entries' excess kurtosis. Exact for 0 (normal) at ``rank >= C``; else to leading order in 1/rank,
    for ``rank >= 8 C``. Raises ``ValueError`` below. ``C^3 / 3`` FLOPs whatever the rank.
    """
    count = len(std_C)
    least = count if kurtosis == 0 else 8 * count
    if rank < least:
        raise ValueError(
            f"a Gram of {count} columns is sampled from rank {least} up, not {rank}: draw Z itself there"
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
    """An adapter that takes the path of some adapter of ``spec.rank``, drawn without holding one; float32, on the CPU.

    The draw is keyed by seed, layer and rank; it is another one than :func:`study.adapters.bank.initial_pair` makes, of
    the same distribution. Raises ``ValueError`` for a rank too low to sample (:func:`sample_factor`).
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
    """A bank whose adapters have rank ``min(R, D)`` (Init[B]: O) and, under SGD, follow those of rank R.

    Up to rank ``HELD``, the adapter that a :class:`LoraBank` would draw, reduced: the same path within rounding. Above,
    one of the same distribution. Probes see the reduced factors: their Frobenius norms are those of A and B, their
    means per entry are not.
    """

    def drawn(self, spec: AdapterSpec, d: int, o: int) -> LoraPair:
        fan = d if INITS[spec.init].drawn == "A" else o
        if spec.rank <= max(HELD, 8 * fan):
            pair = equivalent_pair(*initial_pair(spec, self.layer, d, o))
        else:
            pair = sample_pair(spec, self.layer, d, o)
        return LoraPair(*pair, spec.gamma)
