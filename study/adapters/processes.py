"""The processes that train one cell together, each on its own device.

Every process holds a part of each factor, and computes on a part of each batch. A sum over a batch
is the sum over the processes. :class:`Processes` is a single process: every method is the identity.
:class:`SeveralProcesses` are several, through ``torch.distributed``.

A factor is divided by its features: A by its inputs, B by its outputs. So any rank can be divided.
Letters: ``P`` processes.
"""

from collections.abc import Sequence
from datetime import timedelta
from enum import Enum
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

DIVIDED = (-1, -2)
"""The dimension in which A and B are divided."""
_PATIENCE = timedelta(weeks=52)
"""How long a process waits for process 0, which may itself wait for cells that others train."""


class Order(Enum):
    """Process 0's message to the others after a step."""

    CAPTURE = "capture the state after this step"
    GO_ON = "go on with the next step"
    STOP = "stop after this step"


class Processes:
    """One process, which holds every tensor whole. ``number``: of this process, from 0."""

    number, size = 0, 1
    device: torch.device

    def sum(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over the processes."""
        return x

    def norm(self, norm: Tensor) -> Tensor:
        """The norm of a tensor that is divided, from the ``norm`` of each part."""
        return norm

    def added(self, sums: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        """The sums over processes, and the largest numbers; infinite instead of NaN."""
        return sums, largest

    def whole(self, part: Tensor, dim: int) -> Tensor:
        """A tensor divided in ``dim``, whole on the host of process 0; elsewhere ``part``."""
        return part

    def part(self, whole: Tensor, dim: int) -> Tensor:
        """This process's part of a tensor: the reverse of :meth:`whole`."""
        return whole

    def rows(self, x: Tensor, fill: float) -> list[Tensor]:
        """The rows of ``x`` of each process, equally many. Pads the last chunk with ``fill``."""
        missing = -len(x) % self.size
        filled = torch.cat([x, x.new_full((missing, *x.shape[1:]), fill)]) if missing else x
        return list(filled.chunk(self.size))

    def joined(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """The rows of all processes in order. ``sizes``: how many each has."""
        return x

    def agreed(self, order: Any = None) -> Any:
        """The ``order`` of process 0, in every process. Waits for process 0, but for no device."""
        return order


ALONE = Processes()


class SeveralProcesses(Processes):
    """This process, on its ``device``, and its peers. ``torch.distributed`` must be initialised."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.number, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def sum(self, x: Tensor) -> Tensor:
        total = x.detach().clone()
        torch.distributed.all_reduce(total)
        return total

    def norm(self, norm: Tensor) -> Tensor:
        return self.sum(norm.square()).sqrt()

    def added(self, sums: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
        most = largest.nan_to_num(torch.inf, posinf=torch.inf)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        return self.sum(sums), most

    def _gathered(self, x: Tensor) -> Tensor:
        """``x`` of every process, stacked, ``[P, ...]``. The shapes must be the same."""
        x = x.detach().contiguous()
        parts = x.new_empty(self.size, *x.shape)
        torch.distributed.all_gather(list(parts.unbind()), x)
        return parts

    def whole(self, part: Tensor, dim: int) -> Tensor:
        parts = self._gathered(part).unbind()
        return torch.cat(parts, dim).cpu() if self.number == 0 else part

    def part(self, whole: Tensor, dim: int) -> Tensor:
        return whole.tensor_split(self.size, dim)[self.number]

    def joined(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        filled = x.new_zeros(max(sizes), *x.shape[1:])
        filled[: len(x)] = x
        parts = self._gathered(filled)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def agreed(self, order: Any = None) -> Any:
        orders = [order]
        torch.distributed.broadcast_object_list(orders, src=0, group=group_of_orders())
        return orders[0]


@cache
def group_of_orders() -> Any:
    """The group of :meth:`Processes.agreed`: of the CPU, so that orders wait for no device. All
    processes must make the first call together."""
    return torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)


def own(tensor: T) -> T:
    """This process's part of a tensor that torch has divided; anything else as it is."""
    with torch.no_grad():
        return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def undivided(tensor: Tensor) -> Tensor:
    """A tensor that torch has divided, put together; any other tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
