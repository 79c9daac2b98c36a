"""The tensor of every site: one function each, registered under the source it is computed from.

The rows of :data:`study.vocabulary.quantities.SITES` say what each means. To add a site, add a row
there and a function here. The probe feeds every source to all functions registered for it:

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
from typing import Any, Literal, get_args

from torch import Tensor

from study.adapters.bank import LoraPair
from study.probes.statistics import Chunked, chunk_size, chunks_of


@dataclass(frozen=True)
class Product:
    """``gamma B A``, ``[O, D]``; of experts ``[E, O, D]``.

    - ``BA_OD``: the product without gamma, float32; None if it is not held. Its elements are then
      computed a few rows at a time, and tokens are multiplied by both factors;
    - ``z_nR``, ``dz_nR``: ``gamma A x`` and ``gamma B^T dy`` of the sampled tokens, float32, if the
      pass has computed them. They save one of two products;
    - ``kept_nD``: what dropout multiplies the adapter's inputs by, 0 or ``1 / (1 - p)``; None
      without dropout.
    """

    pair: LoraPair
    BA_OD: Tensor | None = None
    z_nR: Tensor | None = None
    dz_nR: Tensor | None = None
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
        z_nR = x_nD @ A_RD.float().mT * gamma if self.z_nR is None else self.z_nR
        return z_nR @ B_OR.float().mT

    def of_output_gradients(self, dy_nO: Tensor) -> Tensor:
        """``gamma A^T B^T dy``, ``[n, D]``, and back through dropout."""
        A_RD, B_OR, gamma = self.pair
        if self.BA_OD is not None:
            dx_nD = (dy_nO * gamma) @ self.BA_OD
        else:
            dz_nR = dy_nO @ B_OR.float() * gamma if self.dz_nR is None else self.dz_nR
            dx_nD = dz_nR @ A_RD.float()
        return dx_nD if self.kept_nD is None else dx_nD * self.kept_nD


Source = Literal[
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
WHOLE: tuple[Source, ...] = ("sampled_inputs", "sampled_output_gradients", "product")
"""The sources that every process of a :class:`~study.adapters.world.World` has whole. Of the others
each has a part."""

TensorOf = Callable[..., Any]
"""Returns the tensor of a site, or it chunk by chunk; None for a weight without a gradient."""

TENSORS: dict[Source, dict[str, TensorOf]] = {source: {} for source in get_args(Source)}
"""The function of every site, by source and name."""


def site(name: str, source: Source) -> Callable[[TensorOf], TensorOf]:
    """Register a function as the tensor of a site."""

    def register(function: TensorOf) -> TensorOf:
        TENSORS[source][name] = function
        return function

    return register


@site("adapter_in", "inputs")
def _adapter_in(x_ND: Tensor) -> Tensor:
    return x_ND


@site("layer_out", "outputs")
def _layer_out(y_NO: Tensor) -> Tensor:
    return y_NO


@site("layer_out_grad", "output_gradients")
def _layer_out_grad(dy_NO: Tensor) -> Tensor:
    return dy_NO


@site("adapter_out", "sampled_inputs")
def _adapter_out(x_nD: Tensor, product: Product) -> Tensor:
    return product.of_inputs(x_nD)


@site("adapter_in_grad", "sampled_output_gradients")
def _adapter_in_grad(dy_nO: Tensor, product: Product) -> Tensor:
    return product.of_output_gradients(dy_nO)


@site("delta_w", "product")
def _delta_w(product: Product) -> Chunked:
    return product


@site("A", "weights")
def _A(pair: LoraPair) -> Tensor:
    return pair.A_RD.detach()


@site("B", "weights")
def _B(pair: LoraPair) -> Tensor:
    return pair.B_OR.detach()


@site("A_grad", "gradients")
def _A_grad(dA_RD: Tensor | None, dB_OR: Tensor | None) -> Tensor | None:
    return dA_RD


@site("B_grad", "gradients")
def _B_grad(dA_RD: Tensor | None, dB_OR: Tensor | None) -> Tensor | None:
    return dB_OR


@site("A_update", "updates")
def _A_update(dA_RD: Chunked | None, dB_OR: Chunked | None) -> Chunked | None:
    return dA_RD


@site("B_update", "updates")
def _B_update(dA_RD: Chunked | None, dB_OR: Chunked | None) -> Chunked | None:
    return dB_OR
