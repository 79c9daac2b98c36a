"""The tensor of every site: one function each, registered under the source it is computed from.

The rows of :data:`study.vocabulary.quantities.SITES` say what each means. To add a site, add a row
there and a function here. The probe feeds every source to all functions registered for it:

- :mod:`study.probes.activations` feeds ``inputs``, ``outputs`` and ``output_gradients``, which
  hooks read: ``[N, F]`` for the N tokens of a cell, padding included;
- :mod:`study.probes.sampled` feeds ``sampled_inputs`` and ``sampled_output_gradients``: ``[n, F]``
  float32 for n real tokens, and the product ``gamma B A``;
- :mod:`study.probes.delta_w` feeds ``product``, the same product;
- :mod:`study.probes.weights` feeds ``weights`` (the adapter), ``gradients`` and ``updates``
  (``[R, D]`` of A and ``[O, R]`` of B).

A product and an update are not tensors: their elements are computed chunk by chunk
(:class:`study.probes.moments.Chunked`).

Letters: ``N`` tokens of a cell, ``n`` sampled tokens, ``D`` / ``O`` in / out features, ``R`` rank.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import Tensor

from study.adapters.bank import LoraPair
from study.probes.moments import Chunked
from study.probes.product import Product

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
