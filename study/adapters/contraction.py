"""Three ways to multiply out ``y = (W + gamma B A) x`` and its gradients, and which of them is cheapest.

*Factored*, as LoRA is usually written: through the rank, ``6 T R (D + O)`` FLOPs beyond the frozen product, forward and
backward. *Merged*: everything through ``W + gamma B A`` and the gradient of that whole weight, ``2 T D O + 6 R D O``.
*Mixed*: y and dx through the merged weight, the gradients of A and B through the rank, ``2 R D O + 4 T R (D + O)``.
(RunLoRA, Cherniuk et al. 2023, arXiv 2312.03415, has the idea of choosing.) With ``h = D O / (D + O)``: where ``T < h``
factored is the least; above, mixed up to ``R = (h / 2) / (1 - h / T)`` and merged from there on.

All are the same function, so the choice moves results by rounding alone. That is why delta_w is formed first and then
added, why no delta is ever recovered by subtraction, and why merged weights are float32 only: rounded to bf16 they
would lose 98 % of an adapter's output at ``|delta_w| / |W| = 1e-4``.

Letters: ``K`` cells of one rank, ``N`` tokens of one pass, ``T`` those of an optimizer step, ``D`` in features, ``O``
out features, ``R`` rank.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.functional import linear

FORMS = ("factored", "mixed", "merged")
FLOAT = 40
"""FLOPs that products make while a float passes through memory: about that on a CPU and on a GPU. It decides at low
rank alone, where the forms' FLOPs are few."""
NARROW = 16
"""Columns of a factor's gradient, below which it is multiplied transposed (measured on a CPU at 192 to 1536 rows)."""


class Factored(torch.autograd.Function):
    """``y + gamma (x A^T) B^T`` for K cells of one rank.

    ``y_KNO``, ``x_KND`` of one dtype, ``A_KRD``, ``B_KOR`` float32 (cast to it here, once for both directions),
    ``gamma_K11``. gamma goes on the ``[N, R]`` factor, the smallest of the three, and the sum is fused into the second
    product. One autograd Function, so that every gradient comes out in its parameter's own layout: what autograd
    derives from ``bmm(x, A^T)`` is transposed, and copying it back costs a tenth of the step at rank 1024.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, y: Tensor, x: Tensor, A: Tensor, B: Tensor, gamma: Tensor
    ) -> Tensor:
        A, B = A.to(x.dtype), B.to(x.dtype)
        z_KNR = torch.bmm(x, A.mT) * gamma.to(x.dtype)
        ctx.save_for_backward(x, z_KNR, A, B, gamma)
        return torch.baddbmm(y, z_KNR, B.mT)

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, z_KNR, A, B, gamma = ctx.saved_tensors  # type: ignore[attr-defined]
        dz_KNR = torch.bmm(dy, B) * gamma.to(x.dtype)
        dx = torch.bmm(dz_KNR, A) if ctx.needs_input_grad[1] else None  # type: ignore[attr-defined]
        return dy, dx, _outer(dz_KNR, x), _outer(dy, z_KNR), None


class FactoredLinear(torch.autograd.Function):
    """``x W^T + b + gamma (x A^T) B^T`` for a whole bank: the frozen product and every adapter in one node.

    What :class:`Factored` and autograd do in several passes over ``[N, O]`` and ``[N, D]``, each product here adds to
    the one before it in place: at low rank those passes are what an adapter costs.
    ``x_KND``, ``W_OD`` of one dtype, ``b_O`` or None, ``cells`` the cells of each rank, then A, B and gamma of each.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_KND: Tensor,
        W_OD: Tensor,
        b_O: Tensor | None,
        cells: Sequence[slice],
        *adapters: Tensor,
    ) -> Tensor:
        adapters = tuple(tensor.to(x_KND.dtype) for tensor in adapters)
        y_KNO, z = linear(x_KND, W_OD, b_O), []
        for part, A, B, gamma in _each(cells, adapters):
            z.append(torch.bmm(x_KND[part], A.mT).mul_(gamma))
            y_KNO[part].baddbmm_(z[-1], B.mT)
        ctx.cells = cells
        ctx.save_for_backward(x_KND, W_OD, *z, *adapters)
        return y_KNO

    @staticmethod
    def backward(ctx: Any, dy_KNO: Tensor) -> tuple[Tensor | None, ...]:
        x_KND, W_OD, *saved = ctx.saved_tensors
        z, adapters = saved[: len(ctx.cells)], saved[len(ctx.cells) :]
        dx_KND = torch.matmul(dy_KNO, W_OD) if ctx.needs_input_grad[0] else None
        gradients: list[Tensor | None] = []
        for (part, A, B, gamma), z_kNR in zip(_each(ctx.cells, adapters), z, strict=True):
            dy, x = dy_KNO[part], x_KND[part]
            dz_kNR = torch.bmm(dy, B).mul_(gamma)
            if dx_KND is not None:
                dx_KND[part].baddbmm_(dz_kNR, A)
            gradients += [_outer(dz_kNR, x), _outer(dy, z_kNR), None]
        return dx_KND, None, None, None, *gradients


def _each(
    cells: Sequence[slice], adapters: Sequence[Tensor]
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """The cells of a rank with their A, B and gamma."""
    return zip(cells, adapters[::3], adapters[1::3], adapters[2::3], strict=True)


def _outer(u_KNI: Tensor, v_KNJ: Tensor) -> Tensor:
    """``u^T v`` over the tokens, ``[K, I, J]``: the gradient of a factor, never less precise than float32.

    A tall and narrow one is made lying on its side: BLAS takes half the time for it, the turning included.
    """
    if v_KNJ.shape[-1] < NARROW <= u_KNI.shape[-1]:
        product = torch.bmm(v_KNJ.mT, u_KNI).mT.contiguous()
    else:
        product = torch.bmm(u_KNI.mT, v_KNJ)
    return product.to(torch.promote_types(product.dtype, torch.float32))


class Mixed(torch.autograd.Function):
    """``x V^T`` for K cells of one rank, ``V_KOD`` being ``W + gamma B A``; the gradients of A and B go by the rank."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, V: Tensor, A: Tensor, B: Tensor, gamma: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, V, A, B, gamma)
        return torch.bmm(x, V.mT)

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, V, A, B, gamma = ctx.saved_tensors  # type: ignore[attr-defined]
        dx = torch.bmm(dy, V) if ctx.needs_input_grad[0] else None  # type: ignore[attr-defined]
        z_KNR, dz_KNR = torch.bmm(x, A.mT).mul_(gamma), torch.bmm(dy, B).mul_(gamma)
        return dx, None, _outer(dz_KNR, x), _outer(dy, z_KNR), None


class Merged(torch.autograd.Function):
    """The weights ``W + gamma B A``, ``[K, O, D]``, and from their gradient those of A and B."""

    @staticmethod
    def forward(ctx: FunctionCtx, W_OD: Tensor, A: Tensor, B: Tensor, gamma: Tensor) -> Tensor:
        ctx.save_for_backward(A, B, gamma)
        return torch.addcmul(W_OD, torch.bmm(B, A), gamma)

    @staticmethod
    def backward(ctx: FunctionCtx, dW: Tensor) -> tuple[Tensor | None, ...]:
        A, B, gamma = ctx.saved_tensors  # type: ignore[attr-defined]
        dW = dW * gamma  # D O numbers, where the products of the next line have R (D + O)
        return None, torch.bmm(B.mT, dW), torch.bmm(dW, A.mT), None


def factored(
    y_KNO: Tensor, x_KND: Tensor, A_KRD: Tensor, B_KOR: Tensor, gamma_K11: Tensor
) -> Tensor:
    """``y + gamma B A x``, ``[K, N, O]``; see :class:`Factored`."""
    with torch.autocast(y_KNO.device.type, enabled=False):  # dtypes are explicit in there
        return Factored.apply(y_KNO, x_KND, A_KRD, B_KOR, gamma_K11)


def factored_linear(
    x_KND: Tensor,
    W_OD: Tensor,
    b_O: Tensor | None,
    cells: Sequence[slice],
    adapters: Sequence[Tensor],
) -> Tensor:
    """``x W^T + b + gamma B A x``, ``[K, N, O]`` in W's precision; see :class:`FactoredLinear`."""
    with torch.autocast(x_KND.device.type, enabled=False):
        return FactoredLinear.apply(x_KND.to(W_OD.dtype), W_OD, b_O, cells, *adapters)


def mixed(x_KND: Tensor, V_KOD: Tensor, A_KRD: Tensor, B_KOR: Tensor, gamma_K11: Tensor) -> Tensor:
    """``x V^T``, ``[K, N, O]`` float32; see :class:`Mixed`."""
    return Mixed.apply(x_KND, V_KOD, A_KRD, B_KOR, gamma_K11)


def merged(W_OD: Tensor, A_KRD: Tensor, B_KOR: Tensor, gamma_K11: Tensor) -> Tensor:
    """``W + gamma B A``, ``[K, O, D]`` float32; see :class:`Merged`."""
    return Merged.apply(W_OD, A_KRD, B_KOR, gamma_K11)


@dataclass(frozen=True)
class Contraction:
    """What decides between the forms: one of them by name, or ``auto``, the cheapest by FLOPs and memory traffic.

    ``tokens``: those of one cell in one optimizer step, all micro-batches together (weights are merged once a step and
    their gradient is projected once). ``merged_rate``: what a device makes of the count, see :func:`merged_rate`.
    """

    form: str = "factored"
    tokens: int = 0
    merged_rate: float = 1.0

    def choose(self, d: int, o: int, rank: int) -> str:
        """One of ``FORMS`` for an adapter ``A: [R, D]``, ``B: [O, R]`` on a dense float32 weight."""
        if self.form != "auto":
            return self.form
        return min(FORMS, key=lambda form: self._cost(form, d, o, rank))

    def _cost(self, form: str, d: int, o: int, rank: int) -> float:
        """In FLOPs of the factored form."""
        rate = self.merged_rate if form == "merged" else 1.0
        return adapter_flops(form, self.tokens, d, o, rank) / rate + FLOAT * floats_moved(
            form, self.tokens, d, o
        )


def adapter_flops(form: str, tokens: int, d: int, o: int, rank: int) -> int:
    """FLOPs of an adapter in one optimizer step beyond the frozen product's ``4 T D O``, forward and backward."""
    if form == "merged":
        return 2 * tokens * d * o + 6 * rank * d * o
    if form == "mixed":
        return 2 * rank * d * o + 4 * tokens * rank * (d + o)
    return 6 * tokens * rank * (d + o)


def floats_moved(form: str, tokens: int, d: int, o: int) -> int:
    """Floats written and read in an optimizer step beside the operands of products: y and dx once more in the factored
    form; the weight being made, in the others; and in the merged form its gradient."""
    return {"factored": 2 * tokens * (d + o), "mixed": 4 * d * o, "merged": 6 * d * o}[form]


@cache
def merged_rate(device: torch.device) -> float:
    """FLOP/s of the merged form over those of the factored one on ``device``, measured once, in a tenth of a second.

    One layer of 512 by 512 features, 512 tokens, rank 170: there both forms count the same. Each is timed in turn with
    the frozen product alone, whose median is taken off. Rounded to a tenth, so that runs on one machine choose alike,
    and kept between 0.8 and 1.2: what a busy machine makes of it may not undo the count.
    """
    side, rank, tries = 512, 170, 15
    stream = torch.Generator().manual_seed(0)
    W_OD, x_1ND, A_1RD, B_1OR = (
        torch.randn(shape, generator=stream).to(device).requires_grad_(len(shape) == 3)
        for shape in ((side, side), (1, side, side), (1, rank, side), (1, side, rank))
    )
    gamma_111 = torch.ones(1, 1, 1, device=device)
    products = {
        "frozen": lambda: torch.bmm(x_1ND, W_OD.mT[None]),
        "factored": lambda: factored(
            torch.bmm(x_1ND, W_OD.mT[None]), x_1ND, A_1RD, B_1OR, gamma_111
        ),
        "merged": lambda: torch.bmm(x_1ND, merged(W_OD, A_1RD, B_1OR, gamma_111).mT),
    }

    def seconds(product: Callable[[], Tensor]) -> float:
        began = time.perf_counter()
        y_1NO = product()
        y_1NO.backward(y_1NO.detach())
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    times = {name: [] for name in products}  # type: dict[str, list[float]]
    for _ in range(tries + 2):  # the first two only warm up
        for name, product in products.items():
            times[name].append(seconds(product))
    took = {name: median(of_name[2:]) for name, of_name in times.items()}
    of_factored, of_merged = (
        adapter_flops(form, side, side, side, rank) / max(took[form] - took["frozen"], 1e-9)
        for form in ("factored", "merged")
    )
    return round(min(1.2, max(0.8, of_merged / of_factored)), 1)
