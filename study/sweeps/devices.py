"""Which GPU a process trains on: of several, each process of a machine takes one of its own.

While it trains a pack, a process holds the lock of a file that is named after its GPU. The system
frees the lock when the process ends, however it ends. The name is the GPU's UUID: another process
sees the same GPU under another number, if its ``CUDA_VISIBLE_DEVICES`` differs.

A launcher that gives every job its own GPU, as Slurm and Ray do, leaves nothing to choose: the
process sees one GPU and trains on it, whether or not another process does too.

Processes that train a cell together (``train.shard``) each take the GPU with their number on the
machine.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from study.errors import StudyError
from study.store import Lock, is_held
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


@contextlib.contextmanager
def own_device(
    name: str, must_stop: Callable[[], bool], number: int | None = None
) -> Iterator[torch.device | None]:
    """Inside, ``device=name`` is this process's alone, if there are several. It becomes current.

    ``number``: that of the only GPU that it may take; None: any. Waits while other processes hold
    every GPU that it may take. Yields None if ``must_stop`` ended the wait. Raises
    :class:`~study.errors.StudyError` if CUDA is asked for and torch sees none, or no GPU with this
    number.
    """
    if choose_device(name).type == "cpu":
        yield torch.device("cpu")
        return
    with _claimed(visible_gpus(), number, must_stop) as gpu:
        if gpu is not None:
            torch.cuda.set_device(gpu.device)
        yield None if gpu is None else gpu.device


def visible_gpus() -> list[Gpu]:
    """The GPUs that torch sees, which ``CUDA_VISIBLE_DEVICES`` chooses and orders."""
    devices = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return [Gpu(d, str(torch.cuda.get_device_properties(d).uuid)) for d in devices]


def others_wait() -> bool:
    """Whether a process of this machine waits for a GPU. A base that is kept would hinder it."""
    return is_held(_folder() / _WAITING)


_WAITING = "waiting.lock"
"""The lock of one of the processes that wait."""
_last: list[str] = []
"""The GPU of this process's last pack, on which its base may still be."""


@contextlib.contextmanager
def _claimed(
    visible: Sequence[Gpu], number: int | None, must_stop: Callable[[], bool]
) -> Iterator[Gpu | None]:
    """Inside, this process holds the lock of the GPU that is yielded."""
    gpus = visible if number is None else visible[number : number + 1]
    if not gpus:
        raise StudyError(
            f"torchrun has started more processes on this machine than the {len(visible)} GPUs "
            "that torch sees: lower --nproc-per-node"
        )
    make_folder(_folder())
    taken = _free(gpus)
    if taken is None and len(visible) > 1:
        taken = _wait(gpus, must_stop)
    elif taken is None:
        taken = gpus[0], contextlib.nullcontext()  # there is no other
    if taken is None:
        yield None
        return
    gpu, held = taken
    _last[:] = [gpu.key]
    with held:
        yield gpu


Claim = tuple[Gpu, contextlib.AbstractContextManager[object]]


def _free(gpus: Sequence[Gpu]) -> Claim | None:
    """A GPU that no other process holds, with its lock, which is held now. Prefers the last one."""
    for gpu in sorted(gpus, key=lambda gpu: gpu.key not in _last):
        own = Lock(_folder() / f"{gpu.key}.lock", timeout=0)
        with contextlib.suppress(TimeoutError):
            own.acquire()
            return gpu, _releasing(own)
    return None


def _wait(gpus: Sequence[Gpu], must_stop: Callable[[], bool]) -> Claim | None:
    """:func:`_free` as soon as there is one; None if asked to stop before."""
    held = ", ".join(str(gpu.device) for gpu in gpus)
    signals.say(
        f"study: waiting for a GPU: other processes hold {held}; one process per GPU is enough "
        "(hydra.launcher.n_jobs)"
    )
    waiting = Lock(_folder() / _WAITING, timeout=0)
    with _releasing(waiting):
        while not must_stop():
            with contextlib.suppress(TimeoutError):
                if not waiting.is_locked:
                    waiting.acquire()
            if taken := _free(gpus):
                return taken
            time.sleep(_POLL)
    return None


@contextlib.contextmanager
def _releasing(held: Lock) -> Iterator[None]:
    try:
        yield
    finally:
        held.release()


def _folder() -> Path:
    return cache_folder() / "gpus"
