"""Ways to compute ``y = (W + gamma B A) x`` and its gradients, and which is cheapest. Their FLOPs,
and what rounding does to each, are in docs/adapters.md.

- *factored*, the usual form of LoRA: all products go through the rank;
- *merged*: all products go through ``W + gamma B A``, and so does the gradient of that weight;
- *mixed*: y and dx through the merged weight, the gradients of A and B through the rank;
- *concatenated*, of a bf16 weight only: the product ``[W, gamma B] [x, A x]``.

delta_w is computed first and then added; no delta is recovered by subtraction.

Letters: ``K`` cells of one rank, ``N`` tokens of one pass, ``T`` tokens of an optimizer step, ``D``
in features, ``O`` out features, ``R`` rank.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

FORMS = ("factored", "mixed", "merged")
"""The forms on a float32 weight."""
FLOAT = 40
"""FLOPs in the time of moving one float through memory, about equal on CPUs and GPUs."""
NARROW = 16
"""A factor's gradient with fewer columns is computed transposed, as measured on a CPU."""
BIAS_COLUMNS = 32
"""Columns next to W for a bias, most of them 0: products of an odd depth are slow in bf16."""


class Listeners(NamedTuple):
    """The functions that get tensors of a pass for K cells of one rank, as soon as it has them.

    - ``product``: ``B A``, ``[K, O, D]``, which merging forms;
    - ``dropped``: the factors that dropout multiplies the adapters' inputs by, ``[K, N, D]``.
    """

    product: Callable[[Tensor], None]
    dropped: Callable[[Tensor], None]


class Factored(torch.autograd.Function):
    """``x W^T + b + gamma (x A^T) B^T`` for a whole bank: frozen product and adapters in one node.

    Each product adds to the previous one in place. Autograd would make several passes over ``[N,
    O]`` and ``[N, D]``, the main cost of a low rank, and copy a transposed gradient, a tenth of a
    step at rank 1024.

    ``y_KNO``: the frozen linear's output; None: compute it from ``W_OD`` and ``b_O``. ``once``: the
    concatenated form. ``cells``: those of each rank; ``adapters``: its A, B and gamma. A and B are
    cast to the dtype of x once. gamma stays float32 (in bf16 it would be off by up to 0.39 %) and
    multiplies the smallest factor.

    The backward pass adds ``dy W`` and ``dz A`` in bf16. Rounding once instead would not help: on
    SmolLM2 the gradients of A and B are as far from float32 either way (2.3 to 9 %).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_KND: Tensor,
        y_KNO: Tensor | None,
        W_OD: Any,
        b_O: Tensor | None,
        once: bool,
        cells: Sequence[slice],
        *adapters: Tensor,
    ) -> Tensor:
        adapters = tuple(t.to(x_KND.dtype) if n % 3 < 2 else t for n, t in enumerate(adapters))
        each = list(_each(cells, adapters))
        z = [torch.bmm(x_KND[part], A.mT).mul_(gamma) for part, A, _, gamma in each]
        if once and W_OD is not None:
            d = [torch.bmm(z_kNR, B.mT) for z_kNR, (_, _, B, _) in zip(z, each, strict=True)]
            y_KNO = once_rounded(d[0] if len(d) == 1 else torch.cat(d), x_KND, W_OD, b_O)
        else:
            y_KNO = linear(x_KND, W_OD, b_O) if y_KNO is None else y_KNO.clone()
            for z_kNR, (part, _, B, _) in zip(z, each, strict=True):
                y_KNO[part].baddbmm_(z_kNR, B.mT)
        ctx.cells = cells
        ctx.save_for_backward(x_KND, W_OD, *z, *adapters)
        return y_KNO

    @staticmethod
    def backward(ctx: Any, dy_KNO: Tensor) -> tuple[Tensor | None, ...]:
        x_KND, W_OD, *saved = ctx.saved_tensors
        z, adapters = saved[: len(ctx.cells)], saved[len(ctx.cells) :]
        dx_KND = None
        if ctx.needs_input_grad[0]:
            dx_KND = torch.zeros_like(x_KND) if W_OD is None else torch.matmul(dy_KNO, W_OD)
        gradients: list[Tensor | None] = []
        for (part, A, B, gamma), z_kNR in zip(_each(ctx.cells, adapters), z, strict=True):
            dy, x = dy_KNO[part], x_KND[part]
            dz_kNR = torch.bmm(dy, B).mul_(gamma)
            if dx_KND is not None:
                dx_KND[part].baddbmm_(dz_kNR, A)
            gradients += [outer(dz_kNR, x), outer(dy, z_kNR), None]
        of_y = dy_KNO if ctx.needs_input_grad[1] else None
        return dx_KND, of_y, None, None, None, None, *gradients


def once_rounded(d_KNO: Tensor, x_KND: Tensor, W_OD: Tensor, b_O: Tensor | None) -> Tensor:
    """``d + x W^T + b``, ``[K, N, O]``, rounded once. A bias is another column of W, which costs a
    copy of W. In ``d + b`` a small d would be lost."""
    if b_O is not None:
        x_KND = pad(x_KND, (0, BIAS_COLUMNS), value=1.0)
        W_OD = torch.cat([W_OD, b_O[:, None], W_OD.new_zeros(len(b_O), BIAS_COLUMNS - 1)], 1)
    return torch.addmm(d_KNO.flatten(0, 1), x_KND.flatten(0, 1), W_OD.mT).view_as(d_KNO)


def _each(
    cells: Sequence[slice], adapters: Sequence[Tensor]
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
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
    """``x V^T`` for K cells of one rank, ``V_KOD = W + gamma B A``; A and B through the rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, V: Tensor, A: Tensor, B: Tensor, gamma: Tensor) -> Tensor:
        ctx.save_for_backward(x, V, A, B, gamma)
        return torch.bmm(x, V.mT)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, V, A, B, gamma = ctx.saved_tensors
        dx = torch.bmm(dy, V) if ctx.needs_input_grad[0] else None
        z_KNR, dz_KNR = torch.bmm(x, A.mT).mul_(gamma), torch.bmm(dy, B).mul_(gamma)
        return dx, None, outer(dz_KNR, x), outer(dy, z_KNR), None


class Merged(torch.autograd.Function):
    """The weights ``W + gamma B A``, ``[K, O, D]``. Their gradient gives those of A and B."""

    @staticmethod
    def forward(
        ctx: Any,
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
    def backward(ctx: Any, dW: Tensor) -> tuple[Tensor | None, ...]:
        A, B, gamma = ctx.saved_tensors
        dW = dW * gamma  # once, rather than on both products below
        return None, torch.bmm(B.mT, dW), torch.bmm(dW, A.mT), None, None


@dataclass(frozen=True)
class Contraction:
    """The rule that chooses a form.

    - ``form``: one of ``FORMS``, or ``auto``: the cheapest by FLOPs and memory traffic. On a bf16
      weight ``factored``, and for any other the concatenated form;
    - ``tokens``: of one cell in one optimizer step, all its micro-batches together. Weights are
      merged once a step, and their gradient is projected once.
    """

    form: str = "factored"
    tokens: int = 0

    def choose(self, d: int, o: int, rank: int, needs_product: bool = False) -> str:
        """One of ``FORMS`` for ``A: [R, D]`` and ``B: [O, R]`` on a dense float32 weight."""
        if self.form != "auto":
            return self.form

        # Floats written and read in a step, without the operands of products: y and dx a second
        # time; the merged weight; that weight and its gradient.
        moved = {"factored": 2 * self.tokens * (d + o), "mixed": 4 * d * o, "merged": 6 * d * o}

        def cost(form: str) -> float:
            """In units of the factored form's FLOPs."""
            flops, floats = adapter_flops(form, self.tokens, d, o, rank), moved[form]
            if needs_product and form == "factored":
                flops, floats = flops + 2 * rank * d * o, floats + d * o
            return flops + FLOAT * floats

        return min(FORMS, key=cost)


def adapter_flops(form: str, tokens: int, d: int, o: int, rank: int) -> int:
    """FLOPs of an adapter in one step, forward and backward, without the frozen ``4 T D O``."""
    if form == "merged":
        return 2 * tokens * d * o + 6 * rank * d * o
    if form == "mixed":
        return 2 * rank * d * o + 4 * tokens * rank * (d + o)
    return 6 * tokens * rank * (d + o)
