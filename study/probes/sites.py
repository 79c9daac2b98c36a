"""The tensor of every site: one function each, under the source it is computed from.

The rows of :data:`study.vocabulary.quantities.SITES` define them. To add a site, add a row there
and a function in :data:`TENSORS`. The probe feeds every source to all of its functions:

- :mod:`study.probes.activations` feeds ``inputs``, ``outputs`` and ``output_gradients``, which
  hooks read: ``[K, N, F]`` for the N tokens of each cell, padding included;
- it feeds ``sampled_inputs`` and ``sampled_output_gradients`` too: ``[k, n, F]`` float32 for n real
  tokens, and the product ``gamma B A`` of a :class:`study.adapters.bank.Stack`;
- :mod:`study.probes.delta_w` feeds ``product``, the same product;
- :mod:`study.probes.norm_probe` feeds ``weights`` (the stack), ``gradients`` and ``updates``
  (``[k, R, D]`` of A and ``[k, O, R]`` of B).

A product and an update are not tensors: their elements are computed chunk by chunk.

Letters: ``K`` cells, ``k`` cells of one rank, ``N`` tokens of a cell, ``n`` sampled tokens, ``D`` /
``O`` in / out features, ``R`` rank.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from study.adapters.bank import Stack
from study.probes.statistics import chunk_size, chunks_of


@dataclass(frozen=True)
class Product:
    """``gamma B A`` of k cells, ``[k, O, D]``; of experts ``[k, E, O, D]``.

    - ``BA_kOD``: the product without gamma, float32; None if it is not held. Its elements are then
      computed a few rows at a time;
    - ``kept_knD``: what dropout multiplies the adapter's inputs by, 0 or ``1 / (1 - p)``; None
      without dropout.
    """

    stack: Stack
    BA_kOD: Tensor | None = None
    kept_knD: Tensor | None = None

    @property
    def is_compact(self) -> bool:
        """Whether it has fewer elements than its factors: above R = D O / (D + O)."""
        return self.numel() < self.stack.A_kRD.numel() + self.stack.B_kOR.numel()

    def numel(self) -> int:
        return self.stack.B_kOR.shape[:-1].numel() * self.stack.A_kRD.shape[-1]

    def chunks(self) -> Iterator[Tensor]:
        """Its elements: ``2 D O R`` FLOPs of each cell if it is not held."""
        _, A_kRD, B_kOR, gamma, *_ = self.stack
        if self.BA_kOD is not None:
            for chunk in chunks_of(self.BA_kOD.flatten(1, -2)):
                yield chunk * gamma.view(-1, 1, 1)
            return
        rows = max(1, chunk_size(A_kRD.device) // A_kRD.shape[-1] // len(A_kRD))
        if A_kRD.dim() == 3:  # not of experts
            A_kRD, B_kOR = A_kRD[:, None], B_kOR[:, None]
        for A, B in zip(A_kRD.unbind(1), B_kOR.unbind(1), strict=True):
            A = A.float()
            for some in B.float().split(rows, 1):
                yield (some * gamma.view(-1, 1, 1)) @ A

    def of_inputs(self, x_knD: Tensor) -> Tensor:
        """``gamma B A x`` with x after dropout, ``[k, n, O]``."""
        _, A_kRD, B_kOR, gamma, *_ = self.stack
        if self.kept_knD is not None:
            x_knD = x_knD * self.kept_knD
        return (x_knD @ A_kRD.float().mT * gamma) @ B_kOR.float().mT

    def of_output_gradients(self, dy_knO: Tensor) -> Tensor:
        """``gamma A^T B^T dy``, ``[k, n, D]``, and back through dropout."""
        _, A_kRD, B_kOR, gamma, *_ = self.stack
        dx_knD = (dy_knO @ B_kOR.float() * gamma) @ A_kRD.float()
        return dx_knD if self.kept_knD is None else dx_knD * self.kept_knD


OF_FACTORS = ("weights", "gradients", "updates")
"""The sources whose tensors have the padding of :class:`study.adapters.bank.Stack`."""

TENSORS: dict[str, dict[str, Callable[..., Any]]] = {
    "inputs": {"adapter_in": lambda x_KND: x_KND},
    "outputs": {"layer_out": lambda y_KNO: y_KNO},
    "output_gradients": {"layer_out_grad": lambda dy_KNO: dy_KNO},
    "sampled_inputs": {"adapter_out": lambda x_knD, product: product.of_inputs(x_knD)},
    "sampled_output_gradients": {
        "adapter_in_grad": lambda dy_knO, product: product.of_output_gradients(dy_knO)
    },
    "product": {"delta_w": lambda product: product},
    "weights": {"A": lambda stack: stack.A_kRD, "B": lambda stack: stack.B_kOR},
    "gradients": {"A_grad": lambda dA_kRD, dB_kOR: dA_kRD, "B_grad": lambda dA_kRD, dB_kOR: dB_kOR},
    "updates": {
        "A_update": lambda dA_kRD, dB_kOR: dA_kRD,
        "B_update": lambda dA_kRD, dB_kOR: dB_kOR,
    },
}
"""The function of every site, by source and name. It returns a tensor, or it chunk by chunk; None
for a weight without a gradient."""
