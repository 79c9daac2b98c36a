"""Three ways to compute ``y = (W + gamma B A) x`` and its gradients, and which is cheapest.

FLOPs of one optimizer step beyond the frozen product's ``4 T D O``, forward and backward:

- *factored*, the usual form of LoRA: all products go through the rank. ``6 T R (D + O)``;
- *merged*: all products go through ``W + gamma B A``, and so does the gradient of that weight.
  ``2 T D O + 6 R D O``;
- *mixed*: y and dx through the merged weight, the gradients of A and B through the rank.
  ``2 R D O + 4 T R (D + O)``.

RunLoRA (Cherniuk et al. 2023, arXiv 2312.03415) proposes to choose between forms. Let
``h = D O / (D + O)``. If ``T < h``, factored takes the fewest FLOPs. Otherwise mixed takes the
fewest up to ``R = (h / 2) / (1 - h / T)``, and merged above.

A probe that needs ``B A`` itself costs the factored form ``2 R D O`` more, and the others nothing.

All forms are the same function, so the choice changes results by rounding only. For this reason
delta_w is formed first and then added, no delta is recovered by subtraction, and merged weights are
float32 only: in bf16, at ``|delta_w| / |W| = 1e-4``, they would lose 98 % of the adapter's output.

Letters: ``K`` cells of one rank, ``N`` tokens of one pass, ``T`` tokens of an optimizer step, ``D``
in features, ``O`` out features, ``R`` rank.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.functional import linear

FORMS = ("factored", "mixed", "merged")
FLOAT = 40
"""FLOPs computed in the time that one float takes through memory: about the same on a CPU and on a
GPU. It decides at low rank only, where the forms differ by few FLOPs."""
NARROW = 16
"""A factor's gradient with fewer columns is computed transposed. Measured on a CPU, 192 to 1536
rows."""


class Listeners(NamedTuple):
    """The functions that get tensors of a pass for K cells of one rank, as soon as it has them.

    - ``product``: ``B A``, ``[K, O, D]``, which merging forms;
    - ``hidden``: ``gamma A x``, ``[K, N, R]``, in the forward pass of :class:`FactoredLinear`;
    - ``hidden_gradient``: ``gamma B^T dy``, ``[K, N, R]``, in its backward pass;
    - ``dropped``: the factors that dropout multiplies the adapters' inputs by, ``[K, N, D]``.
    """

    product: Callable[[Tensor], None]
    hidden: Callable[[Tensor], None]
    hidden_gradient: Callable[[Tensor], None]
    dropped: Callable[[Tensor], None]


class Factored(torch.autograd.Function):
    """``y + gamma (x A^T) B^T`` for K cells of one rank.

    ``y_KNO`` and ``x_KND`` have one dtype. ``A_KRD`` and ``B_KOR`` are float32 and are cast to it
    once for both directions. ``gamma_K11`` multiplies the ``[N, R]`` factor, the smallest of the
    three. The sum is fused into the second product.

    As one autograd Function it gives every gradient in the layout of its parameter. Autograd's own
    gradient of ``bmm(x, A^T)`` is transposed, and copying it costs a tenth of a step at rank 1024.
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
        return dy, dx, outer(dz_KNR, x), outer(dy, z_KNR), None


class FactoredLinear(torch.autograd.Function):
    """``x W^T + b + gamma (x A^T) B^T`` for a whole bank: frozen product and adapters in one node.

    Each product adds to the previous one in place. :class:`Factored` and autograd need several
    passes over ``[N, O]`` and ``[N, D]`` instead, which dominate the cost of an adapter of low
    rank.

    ``x_KND`` and ``W_OD`` have one dtype; ``b_O`` may be None; ``cells`` are the cells of each
    rank, ``listeners`` the functions that get its tensors, and ``adapters`` its A, B and gamma.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_KND: Tensor,
        W_OD: Tensor,
        b_O: Tensor | None,
        cells: Sequence[slice],
        listeners: Sequence[Listeners | None],
        *adapters: Tensor,
    ) -> Tensor:
        adapters = tuple(tensor.to(x_KND.dtype) for tensor in adapters)
        y_KNO, z = linear(x_KND, W_OD, b_O), []
        for (part, A, B, gamma), heard in zip(_each(cells, adapters), listeners, strict=True):
            z.append(torch.bmm(x_KND[part], A.mT).mul_(gamma))
            if heard is not None:
                heard.hidden(z[-1])
            y_KNO[part].baddbmm_(z[-1], B.mT)
        ctx.cells, ctx.listeners = cells, listeners
        ctx.save_for_backward(x_KND, W_OD, *z, *adapters)
        return y_KNO

    @staticmethod
    def backward(ctx: Any, dy_KNO: Tensor) -> tuple[Tensor | None, ...]:
        x_KND, W_OD, *saved = ctx.saved_tensors
        z, adapters = saved[: len(ctx.cells)], saved[len(ctx.cells) :]
        dx_KND = torch.matmul(dy_KNO, W_OD) if ctx.needs_input_grad[0] else None
        gradients: list[Tensor | None] = []
        ranks = zip(_each(ctx.cells, adapters), z, ctx.listeners, strict=True)
        for (part, A, B, gamma), z_kNR, heard in ranks:
            dy, x = dy_KNO[part], x_KND[part]
            dz_kNR = torch.bmm(dy, B).mul_(gamma)
            if heard is not None:
                heard.hidden_gradient(dz_kNR)
            if dx_KND is not None:
                dx_KND[part].baddbmm_(dz_kNR, A)
            gradients += [outer(dz_kNR, x), outer(dy, z_kNR), None]
        return dx_KND, None, None, None, None, *gradients


def _each(
    cells: Sequence[slice], adapters: Sequence[Tensor]
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """For each rank its cells, and their A, B and gamma."""
    return zip(cells, adapters[::3], adapters[1::3], adapters[2::3], strict=True)


def outer(u_KNI: Tensor, v_KNJ: Tensor) -> Tensor:
    """``u^T v`` over the tokens, ``[K, I, J]``: the gradient of a factor, at least as float32.

    See :func:`_product` for its precision. A tall and narrow product is computed transposed: half
    the time in BLAS, including the copy.
    """
    if v_KNJ.shape[-1] < NARROW <= u_KNI.shape[-1]:
        return _product(v_KNJ.mT, u_KNI).mT.contiguous()
    return _product(u_KNI.mT, v_KNJ)


def _product(u_KIN: Tensor, v_KNJ: Tensor) -> Tensor:
    """``u v``, stored at least as float32.

    The product of bf16 factors is float32-precise on a GPU. On a CPU, which has no such product, it
    is rounded to bf16 once: a relative error of 1.7e-3, like that of the factors. Casting the
    factors instead would make a layer's passes 1.3 to 2 times slower.
    """
    half = u_KIN.dtype.itemsize < torch.float32.itemsize
    if half and u_KIN.device.type != "cpu":
        return torch.bmm(u_KIN, v_KNJ, out_dtype=torch.float32)
    product = torch.bmm(u_KIN, v_KNJ)
    return product.float() if half else product


class Mixed(torch.autograd.Function):
    """``x V^T`` for K cells of one rank, with ``V_KOD = W + gamma B A``.

    The gradients of A and B are computed through the rank.
    """

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
        return dx, None, outer(dz_KNR, x), outer(dy, z_KNR), None


class Merged(torch.autograd.Function):
    """The weights ``W + gamma B A``, ``[K, O, D]``. Their gradient gives those of A and B.

    ``listeners.product`` gets the product ``B A``.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        W_OD: Tensor,
        A: Tensor,
        B: Tensor,
        gamma: Tensor,
        listeners: Listeners | None,
    ) -> Tensor:
        ctx.save_for_backward(A, B, gamma)
        product_KOD = torch.bmm(B, A)
        if listeners is not None:
            listeners.product(product_KOD)
        return torch.addcmul(W_OD, product_KOD, gamma)

    @staticmethod
    def backward(ctx: FunctionCtx, dW: Tensor) -> tuple[Tensor | None, ...]:
        A, B, gamma = ctx.saved_tensors  # type: ignore[attr-defined]
        dW = dW * gamma  # once, rather than on both products below
        return None, torch.bmm(B.mT, dW), torch.bmm(dW, A.mT), None, None


def factored(
    y_KNO: Tensor, x_KND: Tensor, A_KRD: Tensor, B_KOR: Tensor, gamma_K11: Tensor
) -> Tensor:
    """``y + gamma B A x``, ``[K, N, O]``; see :class:`Factored`."""
    with torch.autocast(y_KNO.device.type, enabled=False):  # Factored casts by itself
        return Factored.apply(y_KNO, x_KND, A_KRD, B_KOR, gamma_K11)


def factored_linear(
    x_KND: Tensor,
    W_OD: Tensor,
    b_O: Tensor | None,
    cells: Sequence[slice],
    listeners: Sequence[Listeners | None],
    adapters: Sequence[Tensor],
) -> Tensor:
    """``x W^T + b + gamma B A x``, ``[K, N, O]`` in W's precision; see :class:`FactoredLinear`."""
    with torch.autocast(x_KND.device.type, enabled=False):
        return FactoredLinear.apply(x_KND.to(W_OD.dtype), W_OD, b_O, cells, listeners, *adapters)


def mixed(x_KND: Tensor, V_KOD: Tensor, A_KRD: Tensor, B_KOR: Tensor, gamma_K11: Tensor) -> Tensor:
    """``x V^T``, ``[K, N, O]`` float32; see :class:`Mixed`."""
    return Mixed.apply(x_KND, V_KOD, A_KRD, B_KOR, gamma_K11)


def merged(
    W_OD: Tensor,
    A_KRD: Tensor,
    B_KOR: Tensor,
    gamma_K11: Tensor,
    listeners: Listeners | None = None,
) -> Tensor:
    """``W + gamma B A``, ``[K, O, D]`` float32; see :class:`Merged`."""
    return Merged.apply(W_OD, A_KRD, B_KOR, gamma_K11, listeners)


@dataclass(frozen=True)
class Contraction:
    """The rule that chooses a form.

    - ``form``: one of ``FORMS``, or ``auto``: the cheapest by FLOPs and memory traffic;
    - ``tokens``: of one cell in one optimizer step, all its micro-batches together. Weights are
      merged once a step, and their gradient is projected once.
    """

    form: str = "factored"
    tokens: int = 0

    def choose(self, d: int, o: int, rank: int, needs_product: bool = False) -> str:
        """One of ``FORMS`` for ``A: [R, D]`` and ``B: [O, R]`` on a dense float32 weight.

        ``needs_product``: whether a probe needs ``B A`` itself.
        """
        if self.form != "auto":
            return self.form

        def cost(form: str) -> float:
            """In units of the factored form's FLOPs."""
            flops = adapter_flops(form, self.tokens, d, o, rank)
            floats = floats_moved(form, self.tokens, d, o)
            if needs_product and form == "factored":
                flops, floats = flops + 2 * rank * d * o, floats + d * o
            return flops + FLOAT * floats

        return min(FORMS, key=cost)


def adapter_flops(form: str, tokens: int, d: int, o: int, rank: int) -> int:
    """FLOPs of an adapter in one optimizer step, forward and backward.

    The frozen product's ``4 T D O`` are not included.
    """
    if form == "merged":
        return 2 * tokens * d * o + 6 * rank * d * o
    if form == "mixed":
        return 2 * rank * d * o + 4 * tokens * rank * (d + o)
    return 6 * tokens * rank * (d + o)


def floats_moved(form: str, tokens: int, d: int, o: int) -> int:
    """Floats written and read in an optimizer step, without the operands of products.

    In the factored form: y and dx a second time. In the mixed form: the merged weight. In the
    merged form: that weight and its gradient.
    """
    return {"factored": 2 * tokens * (d + o), "mixed": 4 * d * o, "merged": 6 * d * o}[form]
