"""One cell over several processes: base, adapters, gradients and optimizer state divided.

torch's FSDP2 divides every weight among the devices. It gathers a block's weights just before the
block runs and drops them after it. Each process keeps and steps its part of the summed gradients.

The host's memory holds the whole base. Every cell divides a copy of it, because FSDP can't be
removed from a module. Every device holds the whole head.
"""

import copy
from dataclasses import replace
from typing import Any

from torch import nn

from study.adapters.bank import Bucket
from study.adapters.processes import DIVIDED, Processes
from study.models import FrozenBase
from study.models.base import blocks_of


def copy_to_divide(base: FrozenBase, world: Processes) -> FrozenBase:
    """A copy of ``base`` with new modules and the same weights; for one process, ``base``."""
    if world.size == 1:
        return base
    model: Any = base.model
    # New tensors in the same memory: FSDP moves the data of those it is given to its device.
    aliases: dict[int, Any] = {id(buffer): buffer.detach() for buffer in model.buffers()}
    for weight in model.parameters():
        aliases[id(weight)] = nn.Parameter(weight.data, requires_grad=weight.requires_grad)
    return replace(base, model=copy.deepcopy(model, aliases))


def divide(base: FrozenBase, world: Processes) -> None:
    """Divide the weights of ``base``, which has its adapters, among the processes of ``world``.

    ``base``: of :func:`copy_to_divide`. Afterwards it is on the device of this process.
    """
    if world.size == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    buckets = [module for module in base.model.modules() if isinstance(module, Bucket)]
    stacks = [(bucket.A_kRD, bucket.B_kOR) for bucket in buckets]
    dims = {id(stack): dim for pair in stacks for stack, dim in zip(pair, DIVIDED, strict=True)}

    def placement(parameter: nn.Parameter) -> Any:
        return Shard(dims[id(parameter)]) if id(parameter) in dims else None

    blocks = blocks_of(base)
    for block in blocks:
        fully_shard(block, mesh=mesh, shard_placement_fn=placement)
    for module in (*blocks, fully_shard(base.trunk, mesh=mesh)):
        # Gradients are of the mean over the tokens of all processes, so they add.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    for child in base.model.children():
        if child is not base.trunk:
            child.to(world.device)
