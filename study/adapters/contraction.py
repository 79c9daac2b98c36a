"""How ``y + gamma B A x`` and its gradients are multiplied out.

*Factored*, as LoRA is usually written: through the rank, ``6 N R (D + O)`` FLOPs beyond the base, forward and backward.
Written as one autograd Function so that every gradient comes out in its parameter's own layout: what autograd derives
from ``bmm(x, A^T)`` is transposed, and copying it back costs a tenth of the step at rank 1024.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


class Factored(torch.autograd.Function):
    """``y + gamma (x A^T) B^T`` for K cells of one rank.

    ``y_KNO``, ``x_KND`` of one dtype, ``A_KRD``, ``B_KOR`` float32 (cast to it here), ``gamma_K11``. gamma goes on the
    ``[N, R]`` factor, the smallest of the three, and the sum is fused into the second product.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, y: Tensor, x: Tensor, A: Tensor, B: Tensor, gamma: Tensor) -> Tensor:
        z_KNR = torch.bmm(x, A.to(x.dtype).mT) * gamma.to(x.dtype)
        ctx.save_for_backward(x, z_KNR, A, B, gamma)
        return torch.baddbmm(y, z_KNR, B.to(x.dtype).mT)

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, z_KNR, A, B, gamma = ctx.saved_tensors  # type: ignore[attr-defined]
        dz_KNR = torch.bmm(dy, B.to(x.dtype)) * gamma.to(x.dtype)
        dx = torch.bmm(dz_KNR, A.to(x.dtype)) if ctx.needs_input_grad[1] else None  # type: ignore[attr-defined]
        return dy, dx, torch.bmm(dz_KNR.mT, x).to(A.dtype), torch.bmm(dy.mT, z_KNR).to(B.dtype), None


def factored(y_KNO: Tensor, x_KND: Tensor, A_KRD: Tensor, B_KOR: Tensor, gamma_K11: Tensor) -> Tensor:
    """``y + gamma B A x``, ``[K, N, O]``; see :class:`Factored`."""
    with torch.autocast(y_KNO.device.type, enabled=False):  # dtypes are explicit in there
        return Factored.apply(y_KNO, x_KND, A_KRD, B_KOR, gamma_K11)
