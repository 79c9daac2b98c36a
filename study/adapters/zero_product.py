"""The gradients of adapters whose product ``B A`` is zero, from a pass that was computed before.

Every init draws one factor and leaves the other at 0. The adapted layer then computes what the
frozen layer computes, and it passes on the same gradients. So its input x, its output y and the
gradient dy of its output do not depend on the adapter, whatever its rank and gamma are. Only the
gradients of the factors do:

    dB = gamma dy^T (x A^T) where B = 0, and dA = gamma (dy B)^T x where A = 0; the other is 0.

Two products of a layer's nine are left. Each is computed as its form does it
(:mod:`study.adapters.contraction`), so it has the same bits.

Letters: ``K`` cells, ``N`` tokens of one cell, ``D`` in features, ``O`` out features, ``R`` rank.
"""

from collections.abc import Collection, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from study.adapters.contraction import outer
from study.vocabulary.inits import INITS

if TYPE_CHECKING:
    from study.adapters.bank import LoraBank


def known_output(bank: "LoraBank", x: Tensor, y: Tensor) -> Tensor:
    """The known output ``y`` of a bank, from which gradients reach its factors, but not ``x``.

    ``x``: its input, ``[K * B, ..., D]``. ``y``, ``[K * B, ..., O]``, is not copied.
    """
    buckets: list[Any] = list(bank.buckets)
    drawn = {INITS[spec.init].drawn for spec in bank.specs}
    ends = pairwise(accumulate((bucket.cells for bucket in buckets), initial=0))
    parts = [(slice(*cells), b.form) for cells, b in zip(ends, buckets, strict=True)]
    adapters = [tensor for b in buckets for tensor in (b.A_kRD, b.B_kOR, b.gamma_k11)]
    x_KND, y_KNO = (t.reshape(len(bank.specs), -1, t.shape[-1]) for t in (x, y))
    return ZeroProduct.apply(y_KNO, x_KND.to(y.dtype), parts, drawn, *adapters).view_as(y)


class ZeroProduct(torch.autograd.Function):
    """``y_KNO`` as a function of factors whose products are zero.

    ``x`` and ``y`` have one dtype. ``parts``: for each rank its cells, and one of
    :data:`study.adapters.contraction.FORMS`; ``adapters``: for each rank A, B and gamma.
    ``drawn``: the factors that are not 0, ``A`` or ``B``; both if it depends on the cell.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y_KNO: Tensor,
        x_KND: Tensor,
        parts: Sequence[tuple[slice, str]],
        drawn: Collection[str],
        *adapters: Tensor,
    ) -> Tensor:
        ctx.parts, ctx.drawn = parts, drawn
        ctx.save_for_backward(x_KND, *adapters)
        return y_KNO.view_as(y_KNO)

    @staticmethod
    def backward(ctx: Any, dy_KNO: Tensor) -> tuple[Tensor | None, ...]:
        x_KND, *adapters = ctx.saved_tensors
        gradients: list[Tensor | None] = []
        for (cells, form), A, B, gamma in zip(
            ctx.parts, adapters[::3], adapters[1::3], adapters[2::3], strict=True
        ):
            gradients_of = _merged if form == "merged" else _factored
            dA, dB = gradients_of(dy_KNO[cells], x_KND[cells], A, B, gamma, ctx.drawn)
            gradients.append(torch.zeros_like(A) if dA is None else dA)
            gradients.append(torch.zeros_like(B) if dB is None else dB)
            gradients.append(None)
        return None, None, None, None, *gradients


Gradients = tuple[Tensor | None, Tensor | None]
"""Of A and of B; None for zero."""


def _factored(
    dy: Tensor, x: Tensor, A: Tensor, B: Tensor, gamma: Tensor, drawn: Collection[str]
) -> Gradients:
    """Of the factored and the mixed form: both go through the rank."""
    A, B, gamma = A.to(x.dtype), B.to(x.dtype), gamma.to(x.dtype)
    dA = outer(torch.bmm(dy, B).mul_(gamma), x) if "B" in drawn else None
    dB = outer(dy, torch.bmm(x, A.mT).mul_(gamma)) if "A" in drawn else None
    return dA, dB


def _merged(
    dy: Tensor, x: Tensor, A: Tensor, B: Tensor, gamma: Tensor, drawn: Collection[str]
) -> Gradients:
    """Of the merged form: through the gradient of the weight."""
    dW_KOD = torch.bmm(x.mT, dy).mT * gamma
    dA = torch.bmm(B.mT, dW_KOD) if "B" in drawn else None
    dB = torch.bmm(dW_KOD, A.mT) if "A" in drawn else None
    return dA, dB
