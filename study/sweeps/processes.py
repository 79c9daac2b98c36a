"""The processes of torchrun, which train every cell together (``train.shard``).

Process 0 is an ordinary ``study train``: it reads the command line, claims cells, writes results
and prints. It sends the others the cells of each pack, then each cell and the step at which it
begins, and after each step an :class:`~study.training.sharding.Order`. None ends what it began.

A process that fails prints why. Its peers lose their connection to it, and end too.

With or without torchrun, each process of a machine takes a different GPU (:func:`claim_device`).
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist

from study.adapters import resolve_targets
from study.errors import StudyError, one_line
from study.models import load_base
from study.models.base import block_path
from study.store import Lock
from study.store.checkpoints import load_newest
from study.store.files import cache_folder, make_folder
from study.sweeps import signals
from study.sweeps.cells import Cell
from study.sweeps.packs import prepare
from study.training.devices import choose_device, release_memory
from study.training.loop import CellStep, train
from study.training.sharding import ALONE, Order, Processes, count, group_of_orders

CPU = torch.device("cpu")
_POLL = 0.5
"""Seconds between two looks for a free GPU."""
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""gloo's words for a process that has ended. NCCL and the store have their own exceptions."""


def check(cells: Sequence[Cell], launched_here: bool = True) -> None:
    """Check that ``cells`` can be trained by these processes. Loads no weights."""
    processes = count()
    shards = {cell.config.train.shard for cell in cells}
    if shards == {True} and "TORCHELASTIC_RUN_ID" not in os.environ:
        start = "torchrun --nproc-per-node N -m study train ..."
        raise StudyError(f"train.shard=true, and there is one process: start it with {start}")
    if processes == 1:
        return
    if False in shards:
        why = f"torchrun has started {processes} processes, but train.shard=false"
        raise StudyError(f"{why}: use train.shard=true, or no torchrun")
    if not launched_here:
        raise StudyError("torchrun starts the processes itself: leave launcher=... out")
    for cell in cells:
        block_path(cell.card)
        for layer in resolve_targets(cell.card.shapes, cell.config.adapter.targets):
            if layer in cell.card.experts:
                why = f"train.shard=true, and {layer} is a weight of experts"
                raise StudyError(f"{why}: leave experts out of adapter.targets")
            d, o = cell.card.shapes[layer]
            if d % processes or o % processes:
                why = f"{layer} maps {d} features to {o}, which {processes} processes can't divide"
                raise StudyError(f"{why} evenly: choose another --nproc-per-node")


def is_lost(error: Exception) -> bool:
    is_named = isinstance(error, dist.DistError) or any(text in str(error) for text in _LOST)
    return count() > 1 and is_named


def world(device: torch.device) -> Processes:
    """The processes that train together, each on a ``device`` of its type."""
    if count() == 1:
        return ALONE
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        group_of_orders()
    return Processes(device)


def together(train_first: Callable[[], None]) -> None:
    """Be one of torchrun's processes. ``train_first``: what process 0 does. The others train with
    it."""
    if os.environ["RANK"] == "0":
        everyone = world(CPU)
        train_first()
        everyone.agreed(None)
        if dist.is_initialized():
            dist.destroy_process_group()
        return
    for signum in signals.STOPPING:  # process 0 decides when all stop
        signal.signal(signum, signal.SIG_IGN)
    try:
        orders = world(CPU)
        while (cells := orders.agreed()) is not None:
            _follow_pack(cells)
        dist.destroy_process_group()
    except BaseException as error:
        if not (isinstance(error, Exception) and is_lost(error)):
            signals.say(f"study: process {os.environ['RANK']} failed: {one_line(error)}")
        os._exit(1)  # a group that has lost a process may wait for it in a destructor


def _follow_pack(cells: Sequence[Cell]) -> None:
    config, card = cells[0].config, cells[0].card
    with contextlib.ExitStack() as held:
        device = claim_device(config.device, lambda: False, held)
        assert device is not None
        world_here = world(device)
        pack = prepare(cells, device)
        base = load_base(config.model, CPU, config.precision)
        if base.card.fingerprint != card.fingerprint:
            raise StudyError(f"{card.name} has other weights here than in process 0")
        configs = {cell.id: cell.config for cell in cells}
        while (order := world_here.agreed()) is not None:
            cell_id, step = order
            found = load_newest(cells[0].folder.parent / cell_id) if step else None
            if step and (found is None or found.step != step):
                raise RuntimeError(f"cell {cell_id} has no checkpoint of step {step} here")
            states = [found] if found else []
            steps = train(base, pack.corpus, [configs[cell_id]], states, world=world_here)
            with contextlib.closing(steps):
                _follow_steps(steps, world_here)
            release_memory(device)


def _follow_steps(steps: Iterable[Sequence[CellStep | None]], world: Processes) -> None:
    for results in steps:
        while (order := world.agreed()) is Order.CAPTURE:
            for result in filter(None, results):
                result.snapshot()
        if order is Order.STOP:
            return


def claim_device(
    name: str, must_stop: Callable[[], bool], held: contextlib.ExitStack
) -> torch.device | None:
    """The device of ``device=name``, claimed until ``held`` is closed, and made current. None if
    ``must_stop`` ended the wait for a free GPU.

    A process locks a file that is named after the UUID of its GPU. A process that sees one GPU, as
    in jobs of Slurm and Ray, trains on it without a lock. Under torchrun, a process takes the GPU
    with its number on the machine.
    """
    if choose_device(name).type == "cpu":
        return CPU
    # In the order of CUDA_VISIBLE_DEVICES.
    visible = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    gpus, sharded = visible, count() > 1
    if sharded:
        number = int(os.environ["LOCAL_RANK"])
        gpus = visible[number : number + 1]
    if not gpus:
        why = f"torchrun has started more processes than the {len(visible)} GPUs that it sees"
        raise StudyError(f"{why}: lower --nproc-per-node")
    found = _free(gpus, held)
    if found is None and len(visible) == 1:
        found = gpus[0]  # there is no other
    if found is None:
        names = ", ".join(map(str, gpus))
        if sharded:
            why = f"another process trains on {names}"
            raise StudyError(f"{why}: wait for it, or set CUDA_VISIBLE_DEVICES to other GPUs")
        signals.say(f"study: waiting for a GPU: other processes hold {names}")
    while found is None:
        if must_stop():
            return None
        time.sleep(_POLL)
        found = _free(gpus, held)
    torch.cuda.set_device(found)
    return found


def _free(gpus: Sequence[torch.device], held: contextlib.ExitStack) -> torch.device | None:
    """The first GPU that no other process holds. Its lock is held from now on."""
    folder = cache_folder() / "gpus"
    make_folder(folder)
    for device in gpus:
        uuid = torch.cuda.get_device_properties(device).uuid
        with contextlib.suppress(TimeoutError):
            held.enter_context(Lock(folder / f"{uuid}.lock", timeout=0))
            return device
    return None
