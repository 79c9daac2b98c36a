"""The processes of torchrun, which train every cell together (``train.shard``).

Process 0 is an ordinary ``study train``: it reads the command line, claims cells, writes results
and prints. The others do as it says (:mod:`study.sweeps.following`).

A process that fails says so in the store of torchrun, before its peers lose their connections to
it. So one process prints why all of them end. Imports torch only where it is needed.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from study.errors import StudyError, one_line
from study.sweeps import signals

if TYPE_CHECKING:
    import torch

    from study.adapters.processes import Processes
    from study.sweeps.cells import Cell

_FAILED, _ENDED = "study/failed", "study/ended"
"""Keys of the store: why a process has failed, and whether process 0 has ended."""
_READY, _STOPPED = "study/ready", "study/stopped"
"""How many of the others have their device, and whether process 0 was stopped as it waited."""
_POLL = 0.05
"""Seconds between two looks at the store."""


def count() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def follows() -> bool:
    """Whether this process does as process 0 says."""
    return count() > 1 and os.environ["RANK"] != "0"


def check(cells: Sequence["Cell"], launched_here: bool = True) -> None:
    """Check that ``cells`` can be trained by these processes. Loads no weights.

    ``launched_here``: whether the launcher of the sweep runs its jobs in this process. Raises
    :class:`StudyError` for the first that can't.
    """
    processes = count()
    shards = {cell.config.train.shard for cell in cells}
    if shards == {True} and processes == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        raise StudyError(
            "train.shard=true, and there is one process: start it with torchrun --nproc-per-node "
            "N -m study train ..., or use train.shard=false"
        )
    if processes == 1:
        return
    if False in shards:
        raise StudyError(
            f"torchrun has started {processes} processes, but train.shard=false: use "
            "train.shard=true, or start study without torchrun"
        )
    _check_torch()
    if not launched_here:
        raise StudyError("torchrun trains with the launcher of its own: leave launcher=... out")
    for cell in cells:
        _check_divides(cell, processes)


def _check_torch() -> None:
    """Raises :class:`StudyError` if this torch can't add gradients over processes."""
    import torch
    from torch.distributed.fsdp import FSDPModule

    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise StudyError(
            f"train.shard=true needs a newer torch than {torch.__version__}: "
            "pip install --upgrade torch"
        )


def _check_divides(cell: "Cell", processes: int) -> None:
    """Raises :class:`StudyError` unless every factor and the list of blocks can be divided."""
    from study.adapters import resolve_targets
    from study.models.base import block_path

    block_path(cell.card)
    for layer in resolve_targets(cell.card.targets, cell.config.adapter.targets):
        if layer in cell.card.experts:
            raise StudyError(
                f"train.shard=true, and {layer} is a weight of experts: leave experts out of "
                "adapter.targets"
            )
        d, o = cell.card.shapes_by_path[layer]
        if d % processes or o % processes:
            raise StudyError(
                f"{layer} maps {d} features to {o}, which {processes} processes can't divide "
                "evenly: choose torchrun --nproc-per-node so that it divides both"
            )


def world(device: "torch.device") -> "Processes":
    """The processes that train together, each on a ``device`` of its type."""
    from study.adapters.processes import ALONE, SeveralProcesses

    if count() == 1:
        return ALONE
    _join()
    return SeveralProcesses(device)


def local_number() -> int:
    """The number of this process among those that torchrun has started on this machine."""
    return int(os.environ["LOCAL_RANK"])


def begin(world: "Processes", cells: Sequence["Cell"], must_stop: Callable[[], bool]) -> bool:
    """Process 0 tells the others to train ``cells``, and waits until each has its device.

    False if ``must_stop`` ended the wait: no process trains then. Raises :class:`StudyError` if
    another process fails.
    """
    if world.size == 1:
        return True
    store = _store()
    store.set(_READY, "0")
    world.agreed(cells)
    while store.add(_READY, 0) < world.size - 1:
        if store.check([_FAILED]):
            raise StudyError(store.get(_FAILED).decode())
        if must_stop():
            store.set(_STOPPED, "")
            world.agreed(None)
            return False
        time.sleep(_POLL)
    return True


def ready() -> None:
    """Another process says that it has its device: see :func:`begin`."""
    _store().add(_READY, 1)


def stopped() -> bool:
    """Whether process 0 no longer waits for this process's device."""
    return any(_store().check([key]) for key in (_STOPPED, _ENDED))


def device_of_base(device: "torch.device") -> "torch.device":
    """Where the base of a pack is held: whole in the host's memory, if several processes divide
    copies of it, and otherwise on ``device``.
    """
    import torch

    return device if count() == 1 else torch.device("cpu")


@cache
def _join() -> None:
    """Connect this process to the others, once."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def _store() -> Any:
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()


@contextlib.contextmanager
def leading() -> Iterator[None]:
    """Surrounds all that process 0 does. Afterwards the other processes end too."""
    if count() == 1:
        yield
        return
    from torch import device

    everyone = world(device("cpu"))
    try:
        yield
    except BaseException:
        _store().set(_ENDED, "")
        raise
    everyone.agreed(None)


def cause(error: Exception) -> Exception | None:
    """What has stopped this process: another process's failure, or else ``error`` itself.

    None if a process was lost without a word. The cell can then go on from its checkpoint.
    """
    for signum in signals.STOPPING:  # torchrun ends the processes that are left
        signal.signal(signum, signal.SIG_IGN)
    if _store().check([_FAILED]):
        return StudyError(_store().get(_FAILED).decode())
    return None if any(text in str(error) for text in _LOST) else error


_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""What gloo says of a process that has ended."""


def report_failure(error: BaseException) -> str | None:
    """Tell process 0 why this process fails. Returns a line to print if process 0 may not.

    Process 0 is woken when this process ends. A process that waits for a GPU is not: torchrun ends
    it.
    """
    import torch

    line = f"process {os.environ['RANK']} failed: {one_line(error)}"
    store = _store()
    if store.check([_ENDED]) or store.compare_set(_FAILED, "", line).decode() != line:
        return None
    return line if torch.cuda.is_available() else None
