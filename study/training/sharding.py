"""Processes that train one cell together, each on its own device, or whose loop is recorded.

Every process computes on a part of each batch: a sum over a batch is the sum over processes. With
``train.shard``, torch's FSDP2 divides base, adapters, gradients and optimizer state too. It gathers
a block's weights just before the block runs and drops them after it. Each process keeps and steps
its part of the summed gradients. A factor is divided by its features (A by its inputs, B by its
outputs), so any rank can be divided. Letters: ``P`` processes.
"""

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from enum import Enum
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from study.adapters.bank import Bucket
from study.models import FrozenBase
from study.models.base import blocks_of

DIVIDED = (-1, -2)
"""The dimension in which A and B are divided."""
_PATIENCE = timedelta(weeks=52)
"""How long a process waits for process 0, which may itself wait for cells that others train."""


def count() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


class Order(Enum):
    """Process 0's message to the others after a step."""

    CAPTURE = "capture the state after this step"
    GO_ON = "go on with the next step"
    STOP = "stop after this step"


class Processes:
    """This process, on its ``device``, and its peers in ``torch.distributed``. Without a device or
    a process group it is alone, and every method is the identity."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.number, self.size, self.device = 0, 1, device
        if device is not None and dist.is_available() and dist.is_initialized():
            self.number, self.size = dist.get_rank(), dist.get_world_size()

    def sum(self, x: Tensor) -> Tensor:
        if self.size > 1:
            x = x.detach().clone()
            dist.all_reduce(x)
        return x

    def norm(self, norm: Tensor) -> Tensor:
        return self.sum(norm.square()).sqrt() if self.size > 1 else norm

    def added(self, sums: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        """The sums over processes, and the largest numbers; infinite instead of NaN."""
        if self.size > 1:
            largest = largest.nan_to_num(torch.inf, posinf=torch.inf)
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return self.sum(sums), largest

    def _gathered(self, x: Tensor) -> list[Tensor]:
        x = x.detach().contiguous()
        parts = list(x.new_empty(self.size, *x.shape).unbind())
        dist.all_gather(parts, x)
        return parts

    def whole(self, part: Tensor, dim: int) -> Tensor:
        """A tensor divided in ``dim``, whole on the host of process 0; elsewhere ``part``. Vectors
        and scalars, such as an optimizer's number of steps, are not divided."""
        if self.size == 1 or part.dim() < 2:
            return part
        parts = self._gathered(part)
        return torch.cat(parts, dim).cpu() if self.number == 0 else part

    def part(self, whole: Tensor, dim: int) -> Tensor:
        """This process's part of a tensor: the reverse of :meth:`whole`."""
        return whole if whole.dim() < 2 else whole.tensor_split(self.size, dim)[self.number]

    def rows(self, x: Tensor, fill: float) -> list[Tensor]:
        """The rows of ``x`` of each process, equally many. Pads the last chunk with ``fill``."""
        missing = -len(x) % self.size
        filled = torch.cat([x, x.new_full((missing, *x.shape[1:]), fill)]) if missing else x
        return list(filled.chunk(self.size))

    def joined(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """The rows of all processes in order. ``sizes``: how many each has."""
        filled = x.new_zeros(max(sizes), *x.shape[1:])
        filled[: len(x)] = x
        parts = self._gathered(filled)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def agreed(self, order: Any = None) -> Any:
        """The ``order`` of process 0, in every process. Waits for process 0, but for no device."""
        orders = [order]
        if self.size > 1:
            dist.broadcast_object_list(orders, src=0, group=group_of_orders())
        return orders[0]

    def copy_to_divide(self, base: FrozenBase) -> FrozenBase:
        """``base``, or a copy with new modules to :meth:`divide`: FSDP can't be removed from
        one."""
        if self.size == 1:
            return base
        model: Any = base.model
        # New tensors in the same memory: FSDP moves the data of those it is given to its device.
        aliases: dict[int, Any] = {id(buffer): buffer.detach() for buffer in model.buffers()}
        for weight in model.parameters():
            aliases[id(weight)] = nn.Parameter(weight.data, requires_grad=weight.requires_grad)
        return replace(base, model=copy.deepcopy(model, aliases))

    def divide(self, base: FrozenBase) -> None:
        """Divide the weights of a copy with adapters, and move it to this process's device."""
        if self.size == 1:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import Shard

        assert self.device is not None
        mesh = init_device_mesh(self.device.type, (self.size,))
        buckets = [module for module in base.model.modules() if isinstance(module, Bucket)]
        stacks = [(bucket.A_kRD, bucket.B_kOR) for bucket in buckets]
        shards = {
            id(w): Shard(dim) for pair in stacks for w, dim in zip(pair, DIVIDED, strict=True)
        }
        blocks = blocks_of(base)
        for block in blocks:
            fully_shard(block, mesh=mesh, shard_placement_fn=lambda weight: shards.get(id(weight)))
        for module in (*blocks, fully_shard(base.trunk, mesh=mesh)):
            # Gradients are of the mean over the tokens of all processes, so they add.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        for child in base.model.children():
            if child is not base.trunk:
                child.to(self.device)


ALONE = Processes()


@cache
def group_of_orders() -> Any:
    """The group of :meth:`Processes.agreed`: of the CPU, so that orders wait for no device. All
    processes must make the first call together."""
    return dist.new_group(backend="gloo", timeout=_PATIENCE)
