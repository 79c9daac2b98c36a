"""The products of a training step alone: how fast the step could be if all else took no time.

One plain step is recorded: every matrix product and every attention of its forward and backward
pass, in order, with the shapes, strides and dtypes of its operands. The list is then run again
without the rest of the step. A step's time over that of its products says how close it is to the
limit that the products set.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from statistics import median
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from study.config import CellConfig
from study.data import Corpus
from study.models import FrozenBase
from study.training.loop import train
from study.training.run import Run

aten = torch.ops.aten
_SAME_FLOPS = {
    aten.addmm_: aten.addmm,
    aten.baddbmm_: aten.baddbmm,
    aten._scaled_dot_product_flash_attention_for_cpu: aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        aten._scaled_dot_product_flash_attention_backward
    ),
}
"""Products that torch's table of FLOPs lacks, and those in it that do the same work."""
RUNS = 3
"""How often the products are run. The first run also touches memory for the first time."""
SIZE = 0.01
"""The numbers in operands that are not weights are up to this size: no sum or exponential of them
overflows."""

RESULT = -1
"""The place of a product's result, beside the places of its operands from 0."""

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Products(TorchDispatchMode):
    """Records the products that are computed inside it, so that :meth:`seconds` can repeat them.

    ``model``: its parameters and buffers are operands as they are. Other operands and all results
    get memory of their own beforehand, and those of one shape and place in a product share it. They
    are in the processor's cache more often than in a step, so the time is a lower limit.

    ``flops``: of all products, by torch's formulas, in which causal attention counts in full.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        held: Iterable[Tensor] = (*model.parameters(), *model.buffers())
        self._weights = {_memory(tensor) for tensor in held}
        self._shared: dict[tuple[Any, ...], Tensor] = {}
        self._calls: list[Call] = []
        self.flops = 0

    @classmethod
    def of_step(cls, config: CellConfig, base: FrozenBase, corpus: Corpus) -> Self:
        """Those of the second step of a cell: a plain step, without probes.

        Raises :class:`study.errors.StudyError` as training does.
        """
        short = replace(config, train=replace(config.train, steps=2))
        with closing(train(base, corpus, [Run.of(short, corpus, base.device)])) as steps:
            next(steps)
            with cls(base.model) as products:
                next(steps)
        return products

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func._overloadpacket
        formula = flop_registry.get(_SAME_FLOPS.get(packet, packet))
        if formula is not None:
            operands = [each for each in args if not isinstance(each, torch.dtype)]
            self.flops += formula(*operands, **kwargs, out_val=result)
            self._record(func, args, kwargs, result)
        return result

    def _record(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        leaves, structure = pytree.tree_flatten((args, kwargs))
        operands, named = pytree.tree_unflatten(
            [
                self._stand_in(leaf, place) if isinstance(leaf, Tensor) else leaf
                for place, leaf in enumerate(leaves)
            ],
            structure,
        )
        into = _with_result(func)
        if into is not None:
            named = {**named, "out": self._stand_in(result, RESULT)}
        self._calls.append((into or func, operands, named))

    def _stand_in(self, tensor: Tensor, place: int) -> Tensor:
        """What takes the place of ``tensor`` when the products are run again."""
        if _memory(tensor) in self._weights or not tensor.is_floating_point():
            return tensor.detach()
        shape, strides = tuple(tensor.shape), tensor.stride()
        layout = (place, shape, strides, tensor.dtype, tensor.device)
        if layout not in self._shared:
            last = sum(max(n - 1, 0) * stride for n, stride in zip(shape, strides, strict=True))
            flat = torch.empty(last + 1, dtype=tensor.dtype, device=tensor.device)
            self._shared[layout] = flat.uniform_(-SIZE, SIZE).as_strided(shape, strides)
        return self._shared[layout]

    @torch.no_grad()
    def run(self) -> None:
        """Compute every product once, in the order of the step."""
        for func, args, kwargs in self._calls:
            func(*args, **kwargs)

    def seconds(self, device: torch.device) -> float:
        """Seconds of :meth:`run` on ``device``: the median of a few."""
        times = []
        for _ in range(RUNS):
            began = time.perf_counter()
            self.run()
            if device.type != "cpu":
                torch.get_device_module(device).synchronize(device)
            times.append(time.perf_counter() - began)
        return median(times)


def _memory(tensor: Tensor) -> int:
    """The identity of a tensor's memory. Views of one tensor share it."""
    return tensor.untyped_storage()._cdata


def _with_result(func: Any) -> Callable[..., Any] | None:
    """The overload of ``func`` that writes its result to ``out``; None if it has none, or if it
    writes to an operand.
    """
    if func._schema.is_mutable:
        return None
    name = "out" if func._overloadname == "default" else f"{func._overloadname}_out"
    return getattr(func._overloadpacket, name, None)
