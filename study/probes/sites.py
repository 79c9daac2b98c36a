"""The tensor of every site: one function each, under the source it is computed from.

The rows of :data:`study.vocabulary.quantities.SITES` say what each means. To add a site, add a row
there and a function in :data:`TENSORS`. The probe feeds every source to all of its functions:

- :mod:`study.probes.activations` feeds ``inputs``, ``outputs`` and ``output_gradients``, which
  hooks read: ``[N, F]`` for the N tokens of a cell, padding included;
- it feeds ``sampled_inputs`` and ``sampled_output_gradients`` too: ``[n, F]`` float32 for n real
  tokens, and the product ``gamma B A``;
- :mod:`study.probes.delta_w` feeds ``product``, the same product;
- :mod:`study.probes.norm_probe` feeds ``weights`` (the adapter), ``gradients`` and ``updates``
  (``[R, D]`` of A and ``[O, R]`` of B).

A product and an update are not tensors: their elements are computed chunk by chunk
(:class:`study.probes.statistics.Chunked`).

Letters: ``N`` tokens of a cell, ``n`` sampled tokens, ``D`` / ``O`` in / out features, ``R`` rank.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from study.adapters.bank import LoraPair
from study.probes.statistics import chunk_size, chunks_of


@dataclass(frozen=True)
class Product:
    """``gamma B A``, ``[O, D]``; of experts ``[E, O, D]``.

    - ``BA_OD``: the product without gamma, float32; None if it is not held. Its elements are then
      computed a few rows at a time, and tokens are multiplied by both factors;
    - ``kept_nD``: what dropout multiplies the adapter's inputs by, 0 or ``1 / (1 - p)``; None
      without dropout.
    """

    pair: LoraPair
    BA_OD: Tensor | None = None
    kept_nD: Tensor | None = None

    @property
    def is_compact(self) -> bool:
        """Whether it has fewer elements than its factors, so that tokens should be multiplied by
        it, not by both factors. That is above R = D O / (D + O)."""
        A_RD, B_OR, _ = self.pair
        return self.numel() < A_RD.numel() + B_OR.numel()

    def numel(self) -> int:
        """The number of its elements."""
        A_RD, B_OR, _ = self.pair
        return B_OR.shape[:-1].numel() * A_RD.shape[-1]

    def chunks(self) -> Iterator[Tensor]:
        """Its elements: ``2 D O R`` FLOPs if it is not held."""
        A_RD, B_OR, gamma = self.pair
        if self.BA_OD is not None:
            for chunk in chunks_of(self.BA_OD):
                yield chunk * gamma
            return
        d = A_RD.shape[-1]
        rows = max(1, chunk_size(A_RD.device) // d)
        matrices = zip(A_RD, B_OR, strict=True) if A_RD.ndim == 3 else [(A_RD, B_OR)]
        for A, B in matrices:
            A = A.detach().float()
            for some in B.detach().float().split(rows):
                yield (some * gamma) @ A

    def formed(self) -> "Product":
        """The same, with the product held."""
        if self.BA_OD is not None:
            return self
        A_RD, B_OR, _ = self.pair
        return Product(self.pair, B_OR.float() @ A_RD.float())

    def of_inputs(self, x_nD: Tensor) -> Tensor:
        """``gamma B A x`` with x after dropout, ``[n, O]``."""
        A_RD, B_OR, gamma = self.pair
        if self.kept_nD is not None:
            x_nD = x_nD * self.kept_nD
        if self.BA_OD is not None:
            return (x_nD * gamma) @ self.BA_OD.mT
        return (x_nD @ A_RD.float().mT * gamma) @ B_OR.float().mT

    def of_output_gradients(self, dy_nO: Tensor) -> Tensor:
        """``gamma A^T B^T dy``, ``[n, D]``, and back through dropout."""
        A_RD, B_OR, gamma = self.pair
        if self.BA_OD is not None:
            dx_nD = (dy_nO * gamma) @ self.BA_OD
        else:
            dx_nD = (dy_nO @ B_OR.float() * gamma) @ A_RD.float()
        return dx_nD if self.kept_nD is None else dx_nD * self.kept_nD


SiteSource = Literal[
    "inputs",
    "outputs",
    "output_gradients",
    "sampled_inputs",
    "sampled_output_gradients",
    "product",
    "weights",
    "gradients",
    "updates",
]
WHOLE: tuple[SiteSource, ...] = ("sampled_inputs", "sampled_output_gradients", "product")
"""The sources that every process has whole (:mod:`study.adapters.processes`). Of the others each
has a part."""

TENSORS: dict[SiteSource, dict[str, Callable[..., Any]]] = {
    "inputs": {"adapter_in": lambda x_ND: x_ND},
    "outputs": {"layer_out": lambda y_NO: y_NO},
    "output_gradients": {"layer_out_grad": lambda dy_NO: dy_NO},
    "sampled_inputs": {"adapter_out": lambda x_nD, product: product.of_inputs(x_nD)},
    "sampled_output_gradients": {
        "adapter_in_grad": lambda dy_nO, product: product.of_output_gradients(dy_nO)
    },
    "product": {"delta_w": lambda product: product},
    "weights": {"A": lambda pair: pair.A_RD.detach(), "B": lambda pair: pair.B_OR.detach()},
    "gradients": {"A_grad": lambda dA_RD, dB_OR: dA_RD, "B_grad": lambda dA_RD, dB_OR: dB_OR},
    "updates": {"A_update": lambda dA_RD, dB_OR: dA_RD, "B_update": lambda dA_RD, dB_OR: dB_OR},
}
"""The function of every site, by source and name. It returns a tensor, or it chunk by chunk; None
for a weight without a gradient."""
