"""Which GPU a process trains on: of several, each process of a machine takes one of its own.

A process holds the lock of a file that is named after its GPU. The system frees the lock when the
process ends, however it ends. The name is the GPU's UUID: another process sees the same GPU under
another number, if its ``CUDA_VISIBLE_DEVICES`` differs.

A launcher that gives every job its own GPU, as Slurm and Ray do, leaves nothing to choose: the
process sees one GPU and trains on it, whether or not another process does too.

Processes that torchrun has started train a cell together (``train.shard``). Each takes the GPU with
its number on the machine.
"""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from study.errors import StudyError
from study.store import Lock
from study.store.cache import cache_folder
from study.store.files import make_folder
from study.sweeps import signals
from study.training.devices import choose_device

_POLL = 0.5
"""Seconds between two looks for a free GPU."""


def count() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


@dataclass(frozen=True)
class Device:
    """The device that a process trains on, and the lock of its GPU, if it had to choose one."""

    device: torch.device
    lock: Lock | None = None

    def release(self) -> None:
        """Leave the GPU to other processes."""
        if self.lock is not None:
            self.lock.release()


def claim_device(name: str, must_stop: Callable[[], bool]) -> Device | None:
    """The device that ``device=name`` means, claimed for this process. It becomes current.

    Waits while other processes hold every GPU that it may take. Returns None if ``must_stop`` ended
    the wait. Raises :class:`~study.errors.StudyError` if CUDA is asked for and torch sees none, and
    under torchrun if there is no free GPU with the number of this process.
    """
    if choose_device(name).type == "cpu":
        return Device(torch.device("cpu"))
    visible = visible_gpus()
    gpus, sharded = visible, count() > 1
    if sharded:
        number = int(os.environ["LOCAL_RANK"])
        gpus = visible[number : number + 1]
    if not gpus:
        raise StudyError(
            f"torchrun has started more processes on this machine than the {len(visible)} GPUs "
            "that torch sees: lower --nproc-per-node"
        )
    found = _free(gpus)
    if found is None and len(visible) == 1:
        found = Device(gpus[0][0])  # there is no other
    if found is None:
        held = ", ".join(str(device) for device, _ in gpus)
        if sharded:
            raise StudyError(
                f"another process trains on {held}: wait until it has ended, or choose other GPUs "
                "with CUDA_VISIBLE_DEVICES"
            )
        signals.say(
            f"study: waiting for a GPU: other processes hold {held}; one process per GPU is enough "
            "(hydra.launcher.n_jobs)"
        )
    while found is None:
        if must_stop():
            return None
        time.sleep(_POLL)
        found = _free(gpus)
    torch.cuda.set_device(found.device)
    return found


def visible_gpus() -> list[tuple[torch.device, str]]:
    """The GPUs that torch sees, which ``CUDA_VISIBLE_DEVICES`` chooses and orders, with their
    UUIDs.
    """
    devices = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return [(d, str(torch.cuda.get_device_properties(d).uuid)) for d in devices]


def _free(gpus: Sequence[tuple[torch.device, str]]) -> Device | None:
    """The first GPU that no other process holds, with its lock, which is held now."""
    folder = cache_folder() / "gpus"
    make_folder(folder)
    for device, uuid in gpus:
        with contextlib.suppress(TimeoutError):
            return Device(device, Lock(folder / f"{uuid}.lock", timeout=0))
    return None
