"""Which GPU a process trains on: of several, each process of a machine takes one of its own.

A process holds the lock of a file that is named after its GPU. The system frees the lock when the
process ends, however it ends. The name is the GPU's UUID: another process sees the same GPU under
another number, if its ``CUDA_VISIBLE_DEVICES`` differs.

A launcher that gives every job its own GPU, as Slurm and Ray do, leaves nothing to choose: the
process sees one GPU and trains on it, whether or not another process does too.

Processes that train a cell together (``train.shard``) each take the GPU with their number on the
machine.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from study.errors import StudyError
from study.store import Lock
from study.store.cache import cache_folder
from study.store.files import make_folder
from study.sweeps import signals
from study.training.devices import choose_device

_POLL = 0.5
"""Seconds between two looks for a free GPU."""


@dataclass(frozen=True)
class Gpu:
    """A GPU that this process sees. ``key``: its UUID, the same in every process."""

    device: torch.device
    key: str


@dataclass(frozen=True)
class Device:
    """The device that a process trains on, and the lock of its GPU, if it had to choose one."""

    device: torch.device
    lock: Lock | None = None

    def release(self) -> None:
        """Leave the GPU to other processes."""
        if self.lock is not None:
            self.lock.release()


def claim_device(
    name: str, must_stop: Callable[[], bool], number: int | None = None
) -> Device | None:
    """The device that ``device=name`` means, claimed for this process. It becomes current.

    ``number``: that of the only GPU that it may take; None: any. Waits while other processes hold
    every GPU that it may take. Returns None if ``must_stop`` ended the wait. Raises
    :class:`~study.errors.StudyError` if CUDA is asked for and torch sees none, or no GPU with this
    number.
    """
    if choose_device(name).type == "cpu":
        return Device(torch.device("cpu"))
    visible = visible_gpus()
    gpus = visible if number is None else visible[number : number + 1]
    if not gpus:
        raise StudyError(
            f"torchrun has started more processes on this machine than the {len(visible)} GPUs "
            "that torch sees: lower --nproc-per-node"
        )
    make_folder(_folder())
    found = _free(gpus)
    if found is None and len(visible) == 1:
        found = Device(gpus[0].device)  # there is no other
    if found is None:
        held = ", ".join(str(gpu.device) for gpu in gpus)
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


def visible_gpus() -> list[Gpu]:
    """The GPUs that torch sees, which ``CUDA_VISIBLE_DEVICES`` chooses and orders."""
    devices = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return [Gpu(d, str(torch.cuda.get_device_properties(d).uuid)) for d in devices]


def _free(gpus: Sequence[Gpu]) -> Device | None:
    """The first GPU that no other process holds, with its lock, which is held now."""
    for gpu in gpus:
        own = Lock(_folder() / f"{gpu.key}.lock", timeout=0)
        with contextlib.suppress(TimeoutError):
            own.acquire()
            return Device(gpu.device, own)
    return None


def _folder() -> Path:
    return cache_folder() / "gpus"
